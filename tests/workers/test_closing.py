"""Workers end with what they were hired for, also where it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thread_workers import ThreadTransport
from tiny_models import save_tiny

from layercoop_fast import prune
from layercoop_fast.comparing import finding
from layercoop_fast.comparing.compare import compare
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.pruning import stages as prune_stages
from layercoop_fast.workers.dispatch import Workers

L = 3
SMALL: dict[str, Any] = {"windows": 2, "tokens": 8, "workers": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("closing") / "model", n_layers=L))


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> ThreadTransport:
    found = ThreadTransport()
    monkeypatch.setattr(
        "layercoop_fast.game.opening.open_workers",
        lambda _, checkpoint, **__: Workers(found, checkpoint, tolerant=False),
    )
    return found


def broken(game_of: Callable[..., ModelGame]) -> Callable[..., Any]:
    """What measures a mask, so that workers are at work, and then fails."""

    def fail(*arguments: Any, **_: Any) -> None:
        game_of(*arguments)(np.ones((1, L), dtype=bool))
        raise RuntimeError("the search broke")

    return fail


def test_a_search_that_fails(
    model: str, transport: ThreadTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_stages, "search_by_cost", broken(lambda method, game, *_: game))
    with pytest.raises(RuntimeError, match="the search broke"):
        prune(model, tmp_path / "out", remove=1, store=tmp_path / "a.store", **SMALL)
    assert transport.started
    assert transport.closed
    assert not (tmp_path / "out").exists()
    # The store is closed too: nothing waits in its log.
    assert [path.name for path in tmp_path.iterdir()] == ["a.store"]


def test_a_comparison_that_fails_and_one_that_ends(
    model: str, transport: ThreadTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(model, remove=[1], methods=["reverse"], **SMALL)
    ended = transport.closed
    assert transport.started and ended  # noqa: PT018
    monkeypatch.setattr(finding, "get_method", lambda _: broken(lambda game, *_: game))
    with pytest.raises(RuntimeError, match="the search broke"):
        compare(model, remove=[1], methods=["reverse"], **SMALL)
    assert transport.closed > ended


@pytest.mark.parametrize("command", ["evaluate", "shapley"])
def test_commands_that_fail(command: str, run: Any, model: str, transport: ThreadTransport, tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", np.ones((1, L + 1), dtype=bool))
    # With blocks named by hand the width of masks is compared with the opened model alone.
    masks = ["--masks", tmp_path / "masks.npy", "--blocks", "model.layers"]
    wrong = masks if command == "evaluate" else ["--budget", 0]
    small = ["--windows", 2, "--tokens", 8, "--workers", 2]
    assert run(command, model, "--out", tmp_path / "out.npz", *wrong, *small)[0] == 2
    assert transport.closed


def test_a_game_that_cannot_be_made(model: str, transport: ThreadTransport) -> None:
    with pytest.raises(RequestError):
        ModelGame.from_pretrained(model, players=[[L]], **SMALL)
    assert transport.closed
