"""What a run measured comes back from its file, and anything else is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layercoop_fast.bench.results import Figure, Results
from layercoop_fast.errors import RequestError

RESULTS = Results(
    {"processor": "x"}, {"size": "quick"}, [Figure("csrc", "plan", {"ours": [3.0, 1.0, 2.0], "py": [8.0]})]
)


def test_round_trip(tmp_path: Path) -> None:
    RESULTS.save(tmp_path / "a.json")
    assert Results.load(tmp_path / "a.json") == RESULTS
    with pytest.raises(RequestError, match="exists already"):
        RESULTS.save(tmp_path / "a.json")


def test_medians_and_ratios() -> None:
    (figure,) = RESULTS.figures
    assert (figure.median("ours"), figure.ratio("py"), figure.spread("ours")) == (2.0, 4.0, 0.25)
    assert Figure("csrc", "plan", {"py": [8.0]}).ratio("py") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "holds no benchmark figures"),
        ('{"schema": 9}', "has schema 9: this version reads schema 1"),
        ('{"schema": 1, "machine": {}, "settings": {}, "figures": [{"folder": "a"}]}', "holds no benchmark figures"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=message):
        Results.load(path)


@pytest.mark.parametrize("seconds", [[], [0.0], [-1.0], ["fast"]])
def test_seconds_that_are_none_are_refused(tmp_path: Path, seconds: list[object]) -> None:
    figure = {"folder": "a", "name": "b", "ways": {"ours": seconds}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": 1, "machine": {}, "settings": {}, "figures": [figure]}))
    with pytest.raises(RequestError, match="holds no benchmark figures"):
        Results.load(path)
