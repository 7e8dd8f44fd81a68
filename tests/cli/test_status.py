"""What the command line does when the machine, and not the request, is at fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from layercoop_fast.report import doctor


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (MemoryError(), "out of memory: use a smaller memory budget"),
        (OSError(28, "No space left on device"), "No space"),
    ],
)
def test_a_machine_that_gives_up_is_one_line_and_status_1(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, failure: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(doctor, "examine", fail)
    status, _, line = run("doctor", "model")
    assert (status, line.count("\n")) == (1, 1)
    assert said in line
