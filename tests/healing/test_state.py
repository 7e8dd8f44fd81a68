"""Runs that are stopped, by a kill or a full disk, and what is left of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from healing_runs import OPTIONS, weights

from layercoop_fast import RequestError, RunError, heal
from layercoop_fast.healing import loop as loop_module
from layercoop_fast.healing import preparing as preparing_module
from layercoop_fast.healing import state as state_module
from layercoop_fast.healing.optimiser import MasterAdamW
from layercoop_fast.healing.state import read_run, read_state, state_file, write_state


def test_a_stopped_run_goes_on_to_the_same_weights(
    full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "tokens": 3072, "watch_every": 1024, "learning_rate": 3e-3}
    whole = heal(str(cut), str(full), tmp_path / "whole", **options)
    steps = 0
    step = loop_module.Loop.step

    def killed(self: Any, share: float) -> None:
        nonlocal steps
        if steps == 9:
            raise KeyboardInterrupt
        steps += 1
        step(self, share)
        if steps == 7:
            self.save()

    monkeypatch.setattr(loop_module.Loop, "step", killed)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        heal(str(cut), str(full), out, **options)
    monkeypatch.setattr(loop_module.Loop, "step", step)
    assert state_file(out).exists()
    assert not out.exists()
    with pytest.raises(RequestError, match=r"go on with it \(resume=True\)"):
        heal(str(cut), str(full), out, **options)
    with pytest.raises(RequestError, match="another learning_rate"):
        heal(str(cut), str(full), out, **{**options, "learning_rate": 1e-3}, resume=True)
    with pytest.raises(RequestError, match=r"another train: give .* begin again with force=True and without resume="):
        heal(str(cut), str(full), out, **options, train="norms", resume=True)
    # What the first run found for itself is not found again: memory may be short by now.
    monkeypatch.setattr(preparing_module, "free_memory", lambda _: 0)
    done = heal(str(cut), str(full), out, **options, resume=True)
    assert all(torch.equal(one, weights(tmp_path / "whole")[name]) for name, one in weights(out).items())
    for one, other in zip(done.record["curve"], whole.record["curve"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert done.record["checkpointing"] is False
    assert not state_file(out).exists()


def test_a_run_in_place_is_stopped_and_goes_on(
    run: Any, full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(cut, folder)
    options = ["--text", "self", "--window", "16", "--batch", "4", "--tokens", "384", "--train", "norms"]
    command = ["heal", folder, "--teacher", full, "--out", folder, "--force", *options]
    step = loop_module.Loop.step

    def killed(self: Any, share: float) -> None:
        if self.course.step == 3:
            self.save()
            raise KeyboardInterrupt
        step(self, share)

    monkeypatch.setattr(loop_module.Loop, "step", killed)
    status, _, errors = run(*command)
    assert status == 1
    assert "the same command with --resume" in errors
    assert state_file(folder).exists()
    seen: list[int] = []

    def counted(self: Any, share: float) -> None:
        seen.append(self.course.step)
        step(self, share)

    monkeypatch.setattr(loop_module.Loop, "step", counted)
    assert run(*command, "--resume")[0] == 0
    assert seen == [3, 4, 5]
    assert json.loads((folder / "layercoop.json").read_text())["healing"]["tokens"] == 384
    assert not state_file(folder).exists()
    state_file(folder).write_bytes(b"of a run that was stopped")

    def at_once(self: Any, share: float) -> None:
        assert not state_file(folder).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_module.Loop, "step", at_once)
    assert "the same command" not in run(*command)[2]
    assert not state_file(folder).exists()


def test_a_state_is_written_seldom_where_that_takes_long(
    full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = 0.0, []
    step, write = loop_module.Loop.step, loop_module.write_state

    def stepped(self: Any, share: float) -> None:
        nonlocal clock
        clock += 10
        step(self, share)

    def slowly(*arguments: Any) -> None:
        nonlocal clock
        written.append(clock)
        clock += 20
        write(*arguments)

    monkeypatch.setattr(loop_module, "time", SimpleNamespace(perf_counter=lambda: clock))
    monkeypatch.setattr(loop_module.Loop, "step", stepped)
    monkeypatch.setattr(loop_module, "write_state", slowly)
    options = {"text": ["self"], "window": 16, "batch": 2, "train": "norms", "minutes": 8}
    done = heal(str(cut), str(full), tmp_path / "out", **options)
    assert written == [50, 50 + 20 + 200, 50 + 2 * 220]  # the first after 45 s, then ten times what it took
    assert done.record["seconds"] == 480  # writing does not count
    assert done.record["tokens"] == 48 * 32


def test_a_damaged_state_is_one_line(full: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    state_file(out).write_bytes(b"\0" * 100)
    with pytest.raises(RequestError, match="damaged"):
        heal(str(cut), str(full), out, **OPTIONS, resume=True)


def test_a_state_of_other_tensors_is_refused(tmp_path: Path) -> None:
    run = {"train": "all"}
    write_state(tmp_path / "state", {"value/x": torch.zeros(2)}, {"run": run, "course": {}})
    assert read_run(tmp_path / "state") == run
    for other in (torch.zeros(3), torch.zeros(2, dtype=torch.float16)):
        with pytest.raises(RequestError, match="does not hold what this run trains"):
            read_state(tmp_path / "state", {"value/x": other})


@pytest.mark.parametrize("steps", [-1.0, 0.5, math.nan, math.inf])
def test_a_number_of_steps_that_no_run_has_done_is_refused(steps: float) -> None:
    optimiser = MasterAdamW({"x": torch.nn.Parameter(torch.zeros(3))})
    with pytest.raises(ValueError, match=r"step/x: .* is not a number of steps"):
        optimiser.load(optimiser.tensors() | {"step/x": torch.tensor(steps)})


def test_a_full_disk_leaves_the_latest_state(
    full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(loop_module, "TIMES_ITS_COST", 0)
    out, write, count = tmp_path / "out", state_module.write_tensors, 0

    def full_later(place: Path, *arguments: Any) -> None:
        nonlocal count
        count += 1
        write(place, *arguments)
        if count == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module, "write_tensors", full_later)
    options = {**OPTIONS, "tokens": 1024}
    with pytest.raises(RunError, match="No space left"):
        heal(str(cut), str(full), out, **options)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [state_file(out).name]
    monkeypatch.undo()
    torch.set_num_threads(1)
    whole = heal(str(cut), str(full), tmp_path / "whole", **options)
    done = heal(str(cut), str(full), out, **options, resume=True)
    assert done.record["tokens"] == whole.record["tokens"] == 1024
    assert all(torch.equal(one, weights(tmp_path / "whole")[name]) for name, one in weights(out).items())
