"""Bars appear on a terminal after a while, and nowhere else."""

from __future__ import annotations

import time

import pytest

from layercoop_fast.progress import Bars


def run_bars(wait: float = 0.0) -> None:
    with Bars() as bars:
        time.sleep(wait)
        for done in range(1, 6):
            bars.update("layer evaluations", done, 5)
        bars.update("layer evaluations", 1, 9)  # the stage begins again
        bars.update("epochs", 3, 300)


def test_a_terminal_sees_stages_and_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("layercoop_fast.progress.PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    run_bars(wait=0.3)
    printed = capsys.readouterr()
    assert "layer evaluations" in printed.err
    assert "1/9" in printed.err
    assert "3/300" in printed.err
    assert printed.out == ""


def test_a_silent_stage_is_drawn_once_patience_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("layercoop_fast.progress.PATIENCE_SECONDS", 0.1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Bars() as bars:
        bars.update("opening the model", 0, 1)
        time.sleep(0.5)
    assert "opening the model" in capsys.readouterr().err


@pytest.mark.parametrize("patience", [0.0, 1e9])
def test_pipes_and_short_work_see_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], patience: float
) -> None:
    monkeypatch.setattr("layercoop_fast.progress.PATIENCE_SECONDS", patience)
    if patience:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    run_bars()
    assert capsys.readouterr().err == ""
