"""Workers on a Ray cluster of two nodes, both on this machine: same bits, one killed, addresses without a cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from tiny_models import save_tiny
from two_nodes import two_nodes

from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.game.worths import Worths
from layercoop_fast.workers.remote import RemoteModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # ray's own warnings are not ours

L = 6
SMALL: dict[str, Any] = {"windows": 2, "tokens": 24}
MASKS = np.unique(np.random.default_rng(3).random((60, L)) < 0.6, axis=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("ray") / "model", n_layers=L)


@pytest.fixture(scope="module")
def expected(model: Path) -> Worths:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ModelGame.from_pretrained(str(model), **SMALL).evaluate(MASKS)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with one processor each."""
    parents = [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, parents))
    with two_nodes() as address:
        yield address


def test_two_workers_have_the_bits_of_one_process(model: Path, expected: Worths, address: str) -> None:
    game = ModelGame.from_pretrained(str(model), workers=f"ray:{address}", **SMALL)
    assert isinstance(game.masked, RemoteModel)
    assert game.masked.workers.transport.n_workers == 2
    found = game.evaluate(MASKS)
    part = game.with_utility("kl").part(1, 2).evaluate(MASKS)  # another game, on the same actors
    assert np.array_equal(part.window_nll, expected.window_nll[:, 1:])
    assert np.isfinite(part.worths).all()
    game.close()
    assert not ray.is_initialized()
    assert found.fingerprints == expected.fingerprints
    assert found.window_nll.tobytes() == expected.window_nll.tobytes()


def test_one_killed_in_the_middle(model: Path, expected: Worths, address: str, tmp_path: Path) -> None:
    """Nothing is lost; its process is stopped before it gets a task, so that it has one when it is killed."""
    victims: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "layer evaluations" and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    store = tmp_path / "kept.store"
    game = ModelGame.from_pretrained(str(model), workers=f"ray:{address}", store=store, on_progress=kill, **SMALL)
    assert isinstance(game.masked, RemoteModel)
    transport: Any = game.masked.workers.transport
    process = ray.get(transport._actors[0].process_id.remote())
    os.kill(process, signal.SIGSTOP)
    victims.append(process)
    found = game.evaluate(MASKS)
    assert not victims
    game.close()
    assert found.window_nll.tobytes() == expected.window_nll.tobytes()
    with Store(store) as kept:
        (held,) = kept.games()
    assert held.masks == len(MASKS) + (not MASKS.all(axis=1).any())


def test_the_command_line(run: Any, model: Path, expected: Worths, address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", MASKS)
    status, _, error = run(
        *("evaluate", model, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "worths.npz"),
        *("--windows", 2, "--tokens", 24, "--workers", f"ray:{address}", "--json"),
    )
    assert status == 0, error
    assert Worths.load(tmp_path / "worths.npz").window_nll.tobytes() == expected.window_nll.tobytes()
