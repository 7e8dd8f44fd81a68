"""The store under fifty kills at random moments, of bare games and of the command line itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_player import MASKS, L, Player
from tiny_models import save_tiny

from layercoop_fast.errors import RequestError
from layercoop_fast.game.store import Store, check_store
from layercoop_fast.game.worths import Worths

pytestmark = pytest.mark.slow
KILLS = 50


def state_of(path: Path) -> tuple[int, int]:
    """Masks held and masks ever handed in; none where there is no store yet."""
    try:
        with Store(path) as store:
            games = store.games()
    except RequestError:
        assert not path.exists() or not check_store(path)
        return 0, 0
    return sum(game.masks for game in games), sum(game.measured for game in games)


@pytest.mark.parametrize("commit_seconds", [0.0, 0.05])
def test_fifty_kills_at_random_moments(tmp_path: Path, commit_seconds: float) -> None:
    """Every life measures a little; none loses what another committed; nothing is measured twice."""
    rng = np.random.default_rng(0)
    with Player() as player:
        assert player.play(tmp_path / "whole.store", tmp_path / "whole") == 0
        whole, started = Worths.load(tmp_path / "whole"), time.monotonic()
        assert player.play(tmp_path / "again.store", tmp_path / "again", commit_seconds=commit_seconds) == 0
        seconds = time.monotonic() - started
        kills, finished, kept = 0, 0, 0
        store, out = tmp_path / "0.store", tmp_path / "out"
        while kills < KILLS:
            child = player.start(store, out, commit_seconds=commit_seconds)
            time.sleep(rng.random() * 0.4 * seconds)
            os.kill(child, signal.SIGKILL)
            if player.wait(child) == 0:  # done before the signal came: begin another store
                finished += 1
                store, kept = tmp_path / f"{finished}.store", 0
                continue
            kills += 1
            masks, measured = state_of(store)
            assert masks == measured >= kept
            kept = masks
        assert player.play(store, out, commit_seconds=commit_seconds) == 0
    found = Worths.load(out)
    assert found.window_nll.tobytes() == whole.window_nll.tobytes()
    assert found.worths.tobytes() == whole.worths.tobytes()
    for made in tmp_path.glob("*.store"):
        assert state_of(made) == (len(MASKS) + 1, len(MASKS) + 1)


def test_kills_while_two_processes_share_a_store(tmp_path: Path) -> None:
    """One of two is killed at a random moment, again and again; the other is never disturbed."""
    rng = np.random.default_rng(1)
    with Player() as player:
        assert player.play(tmp_path / "whole.store", tmp_path / "whole") == 0
        whole = Worths.load(tmp_path / "whole")
        for round_number in range(10):
            store = tmp_path / f"{round_number}.store"
            victim = player.start(store, tmp_path / "victim")
            other = player.start(store, tmp_path / "other")
            time.sleep(rng.random())
            os.kill(victim, signal.SIGKILL)
            assert player.wait(victim) in (0, -signal.SIGKILL)
            assert player.wait(other) == 0
            found = Worths.load(tmp_path / "other")
            assert found.window_nll.tobytes() == whole.window_nll.tobytes()
            assert state_of(store)[0] == len(MASKS) + 1


def test_the_command_line_goes_on_after_kills(tmp_path: Path) -> None:
    """`evaluate --resume`, killed at any moment from its start on, ends with the worths of an undisturbed run."""
    model = save_tiny(tmp_path / "model", n_layers=L)
    np.save(tmp_path / "masks.npy", np.repeat(MASKS, 4, axis=0))
    out, store = tmp_path / "worths.npz", tmp_path / "worths.npz.store"
    windows = ["--windows", "8", "--tokens", "64"]
    command = [sys.executable, "-m", "layercoop_fast", "evaluate", str(model), "--masks", str(tmp_path / "masks.npy")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    started = time.monotonic()
    plain = [*command, *windows, "--out", str(tmp_path / "plain.npz")]
    assert subprocess.run(plain, env=environment, capture_output=True, check=False).returncode == 0
    seconds = time.monotonic() - started
    rng = np.random.default_rng(2)
    kept = 0
    for _ in range(8):
        run = subprocess.Popen([*command, *windows, "--out", str(out), "--resume"], env=environment)
        time.sleep(rng.random() * seconds)
        run.kill()
        run.wait()
        if out.exists():
            break
        masks, measured = state_of(store)
        assert masks == measured >= kept
        kept = masks
    else:
        last = subprocess.run([*command, *windows, "--out", str(out), "--resume"], env=environment, check=False)
        assert last.returncode == 0
    assert Worths.load(out).window_nll.tobytes() == Worths.load(tmp_path / "plain.npz").window_nll.tobytes()
    assert not store.exists() or state_of(store)[0] > 0
