"""Workers on unlike machines are refused by name, or their fingerprints say that they are mixed."""

from __future__ import annotations

from typing import Any

import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.workers.fingerprints import common_fingerprints


def report(host: str = "a", processor: str = "Zen 4", model: str = "m", **numerics: Any) -> dict[str, Any]:
    return {
        "fingerprints": {"model": model, "numerics": {"torch": "2.9", "threads": 2, **numerics}},
        "machine": {"processor": processor, "gpu": "none"},
        "host": host,
    }


def test_like_workers_have_the_fingerprints_of_one() -> None:
    assert common_fingerprints({0: report(), 3: report("b")}, tolerant=False) == report()["fingerprints"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (report("b", torch="2.8"), "torch is 2.9 on a, but 2.8 for worker 1 on b"),
        (report("b", processor="Zen 3"), "processor is Zen 4 on a, but Zen 3 for worker 1 on b"),
        (report("b", threads=1), "threads is 2 on a, but 1 for worker 1 on b"),
    ],
)
def test_unlike_workers_are_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        common_fingerprints({0: report(), 1: other}, tolerant=False)
    assert "--tolerant" in str(refused.value)


def test_tolerance_shows_in_the_fingerprints() -> None:
    mixed = common_fingerprints({0: report(), 1: report("b", "Zen 3", torch="2.8")}, tolerant=True)
    assert mixed["numerics"] == {"torch": "mixed", "threads": 2, "machines": "mixed: processor"}


def test_another_game_is_never_tolerated() -> None:
    with pytest.raises(RequestError, match="do not measure one game: model is m on a, but x for worker 1 on b"):
        common_fingerprints({0: report(), 1: report("b", model="x")}, tolerant=True)
