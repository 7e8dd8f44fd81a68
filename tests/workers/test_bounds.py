"""No more workers than a machine has room for; said before anything is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thread_workers import opening

from layercoop_fast import prune
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.system import machine
from layercoop_fast.workers.bounds import BASE_BYTES, check_count, worker_bytes
from layercoop_fast.workers.opening import open_workers
from layercoop_fast.workers.ray_workers import _lay_out

GIB = 2**30


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder whose weights are of 16 GiB, as far as sizes go."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        with (folder / name).open("wb") as file:
            file.truncate(8 * GIB)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    return folder


@pytest.fixture
def of_the_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def has(processors: int, free: int) -> None:
        monkeypatch.setattr(machine, "processors", lambda: processors)
        monkeypatch.setattr(machine, "free_bytes", lambda: free)

    return has


def test_more_than_the_processors(of_the_machine: Any, tmp_path: Path) -> None:
    """From Python too, and for a model that is not even there."""
    of_the_machine(3, 2**50)
    said = r"--workers 4: this process may use 3 processors, and each worker needs one: give 3 at most"
    with pytest.raises(RequestError, match=said):
        ModelGame.from_pretrained("nowhere", workers=4)
    with pytest.raises(RequestError, match=said):
        prune("nowhere", tmp_path / "out", remove=1, workers=4)
    with pytest.raises(RequestError, match="this process may use 3 processors"):
        open_workers(10**30, opening("nowhere"))
    assert open_workers(3, opening("nowhere")).transport.n_workers == 3


@pytest.mark.parametrize("command", ["evaluate", "shapley", "prune"])
def test_on_the_command_line(run: Any, tmp_path: Path, command: str, of_the_machine: Any) -> None:
    of_the_machine(2, 2**50)
    np.save(tmp_path / "masks.npy", np.ones((2, 3), dtype=bool))
    asked = {
        # Without --blocks the width of the masks is compared with the model's config first.
        "evaluate": ("--masks", tmp_path / "masks.npy", "--out", tmp_path / "out", "--blocks", "model.layers"),
        "shapley": (),
        "prune": ("--remove", 1, "--out", tmp_path / "out"),
    }
    status, printed, error = run(command, tmp_path / "nowhere", *asked[command], "--workers", 200)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert "--workers 200: this process may use 2 processors" in error
    assert [path.name for path in tmp_path.iterdir()] == ["masks.npy"]


def test_more_than_memory_holds(checkpoint: Path, of_the_machine: Any) -> None:
    of_the_machine(64, 40 * GIB)
    check_count(2, opening(checkpoint))
    with pytest.raises(RequestError, match=r"workers=3: each takes about 16.3 GiB of memory, and 40.0 GiB are free"):
        check_count(3, opening(checkpoint))
    with pytest.raises(RequestError, match=r"each takes about 32.3 GiB of memory.*give 1 at most"):
        check_count(2, opening(checkpoint, dtype="float32"))
    check_count(64, opening(checkpoint, device="cuda"))
    of_the_machine(64, 0)
    check_count(1, opening(checkpoint))


@pytest.mark.parametrize("config", ["", "[]", "{", "[" * 100_000, '{"dtype": 3}', "\x00"])
def test_a_damaged_config_is_said_later(checkpoint: Path, config: str) -> None:
    (checkpoint / "config.json").write_text(config)
    assert worker_bytes(opening(checkpoint, dtype="float32")) == BASE_BYTES + 16 * GIB
    (checkpoint / "config.json").unlink()
    assert worker_bytes(opening(checkpoint, dtype="float32")) == BASE_BYTES + 16 * GIB


def test_actors_of_a_cluster_are_bounded_by_the_memory_of_its_nodes() -> None:
    nodes = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0, "memory": 9.0 * GIB}},
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 8.0, "memory": 9.0 * GIB}},
        {"NodeID": "c", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": "d", "Alive": True, "Resources": {"CPU": 4.0, "memory": 1.0 * GIB}},
        {"NodeID": "e", "Alive": False, "Resources": {"CPU": 99.0}},
    ]
    _, threads, counts = _lay_out(nodes, gpus=False, worker_bytes=3 * GIB)
    assert (threads, counts) == (2, {"a": 1, "b": 3, "c": 2, "d": 1})
    _, threads, counts = _lay_out(nodes, gpus=False, worker_bytes=0)
    assert (threads, counts) == (2, {"a": 1, "b": 4, "c": 2, "d": 2})


@pytest.mark.parametrize("counts", ["100001", "2,99999999999999999999"])
def test_plan_cuts_for_no_more_than_it_can_lay_out(run: Any, counts: str) -> None:
    status, _, error = run("plan", "--layers", 12, "--workers", counts)
    assert (status, "no list of numbers of workers from 1 to 100,000: write 2,8,128" in error) == (2, True)
