"""Bars appear on a terminal after a while; elsewhere a line says the same from time to time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.progress import Bars, duration


def run_bars(wait: float = 0.0) -> None:
    with Bars() as bars:
        time.sleep(wait)
        for done in range(1, 6):
            bars.update("layer evaluations", done, 5)
        bars.update("layer evaluations", 1, 9)  # the stage begins again
        bars.update("epochs", 3, 300)


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("in_terminal")
def test_a_terminal_sees_stages_and_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("layercoop_fast.progress.PATIENCE_SECONDS", 0.0)
    run_bars(wait=0.3)
    printed = capsys.readouterr()
    assert "layer evaluations" in printed.err
    assert "1/9" in printed.err
    assert "3/300" in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("in_terminal")
def test_a_silent_stage_is_drawn_once_patience_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(patience=0.1) as bars:
        bars.update("opening the model", 0, 1)
        time.sleep(0.5)
    assert "opening the model" in capsys.readouterr().err


@pytest.mark.usefixtures("in_terminal")
def test_a_terminal_shows_lines_above_its_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(patience=0.0) as bars:
        bars.update("methods and sizes", 1, 9)
        time.sleep(0.3)
        bars.say("a row [that] is no markup")
    assert "a row [that] is no markup\n" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_short_work_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    run_bars()
    assert capsys.readouterr().err == ""


class Lines:
    """The lines that `Bars` would write, at times of one's own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.bars = Bars(clock=lambda: self.now)

    def after(self, seconds: float, *reports: tuple[str, int, int]) -> None:
        """Let time pass and then report."""
        self.now += seconds
        for report in reports:
            self.bars.update(*report)

    @property
    def line(self) -> str:
        return self.bars._stages.line()


def test_a_line_has_count_share_time_and_time_left() -> None:
    lines = Lines()
    lines.after(30)
    assert lines.line == "30 s: starting"
    lines.after(0, ("layer evaluations", 0, 2000))
    lines.after(15, ("layer evaluations", 300, 2000))
    # 300 took 15 s, so 1,700 take 85 s.
    assert lines.line == "45 s: layer evaluations 300/2,000 (15 %, about 1 min 25 s left)"


def test_a_stage_that_says_nothing_is_named_again() -> None:
    lines = Lines()
    lines.after(1, ("layer evaluations", 5, 5), ("writing the checkpoint", 0, 1))
    lines.after(29)
    assert lines.line == "30 s: writing the checkpoint"
    lines.after(31)
    assert lines.line == "1 min 1 s: writing the checkpoint"


def test_a_stage_within_another_and_one_that_ended_early() -> None:
    lines = Lines()
    lines.after(0, ("methods", 1, 4), ("masks measured", 20, 80), ("layer evaluations", 0, 900))
    lines.after(10, ("layer evaluations", 450, 900))
    assert lines.line == (
        "10 s: methods 1/4 (25 %), masks measured 20/80 (25 %), layer evaluations 450/900 (50 %, about 10 s left)"
    )
    # A search may end before its budget: what is not heard of any more is not told as if it went on.
    lines.after(30, ("methods", 2, 4), ("layer evaluations", 9, 900))
    assert lines.line == "40 s: methods 2/4 (50 %, about 1 min 20 s left), layer evaluations 9/900 (1 %)"
    # The time of a stage that begins again is counted from there.
    lines.after(10, ("layer evaluations", 109, 900), ("methods", 2, 4))
    assert "layer evaluations 109/900 (12 %, about 1 min 19 s left)" in lines.line


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (90, "1 min 30 s"), (1230, "20 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# A command in a process of its own, told to say something ten times a second instead of every half minute.
_OFTEN = """
import sys
from layercoop_fast import progress
from layercoop_fast.__main__ import main
progress.PERIOD_SECONDS = 0.1
main()
"""


def test_a_command_without_a_terminal(tmp_path: Path) -> None:
    """Lines on standard error of a real process, from before its model is open, and nothing but them."""
    model = save_tiny(tmp_path / "model", n_layers=6)
    np.save(tmp_path / "masks.npy", np.random.default_rng(0).random((50, 6)) < 0.5)
    arguments = ["evaluate", model, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "w.npz", "--tokens", 32]
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    done = subprocess.run(
        [sys.executable, "-c", _OFTEN, *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) > 2
    assert any(line.endswith("opening the model") for line in lines)
    forms = [re.fullmatch(r"layercoop-fast: [\d hmins]+: .+", line) for line in lines]
    assert all(forms), lines
    assert done.stderr.replace("\n", "").isprintable()
    assert done.stdout.count("\n") == 1
