"""Games that share workers: other windows, other utilities, and a worker that is lost while they take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thread_workers import ThreadTransport, opening
from tiny_models import save_tiny

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.search.base import get_method
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.workers import worker
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.messages import Message

L = 6
IDS = torch.randint(3, 256, (5, 20), generator=torch.Generator().manual_seed(0))
MASKS = np.unique(np.random.default_rng(3).random((12, L)) < 0.6, axis=0)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("views") / "model", n_layers=L)


def play(model: Path, transport: ThreadTransport | None = None, **options: Any) -> ModelGame:
    crew = None if transport is None else Workers(transport, opening(model))
    return ModelGame(open_checkpoint(str(model)), Calibration(IDS, "test"), workers=crew, **options)


def all_scores(game: ModelGame) -> list[bytes]:
    """Of a game and its views in turn, the first of them once more on other masks."""
    kl = game.with_utility("kl")
    views = [game.part(0, 2), game, kl, kl.part(1, 4), kl.part(0, 1), game.part(0, 2)]
    found = []
    for number, view in enumerate(views):
        scores = view.window_scores(MASKS[number:])
        found += [scores.nll.tobytes(), scores.kl.tobytes()]
    return found


def test_views_are_measured_as_in_one_process(model: Path, tmp_path: Path) -> None:
    """The parts and the divergence of a game, which all have numbers of their own, in a store as well."""
    transport = ThreadTransport()
    game = play(model, transport, store=tmp_path / "kept.store")
    assert all_scores(game) == all_scores(play(model))
    assert transport.started == [0, 1], "nobody opens the checkpoint again"
    game.close()
    again = play(model, store=tmp_path / "other.store")
    all_scores(again)
    again.close()
    with Store(tmp_path / "kept.store") as kept, Store(tmp_path / "other.store") as other:
        assert sorted(game.masks for game in kept.games()) == sorted(game.masks for game in other.games())


def test_a_game_that_was_played_before_is_still_open(model: Path) -> None:
    """Its teacher too: each worker runs the full model once for a view, however often the views take turns."""
    teachers: list[int] = []

    def note(place: int, message: Message) -> Message:
        if message.kind == "rows" and message.about["teacher"]:
            teachers.append(message.about["teacher"])
        return message

    game = play(model, ThreadTransport(1, spoil=note))
    parts = [game.with_utility("kl").part(first, first + 1) for first in range(3)]
    for mask in MASKS[:4]:
        for part in parts:
            part.evaluate(mask[None])
    assert teachers == [L] * 3
    assert game.evaluations.token_evals == sum(part.evaluations.token_evals for part in parts)
    game.close()


def test_the_last_few_games_stay_open(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_MOST_OPEN", 2)
    game, alone = play(model, ThreadTransport(1)), play(model)
    for turn in range(2):
        for first in range(4):
            masks = MASKS[3 * turn : 3 * turn + 3]
            expected = alone.part(first, first + 1).evaluate(masks).nll
            assert game.part(first, first + 1).evaluate(masks).nll.tobytes() == expected.tobytes()
    game.close()


def test_a_worker_lost_between_two_views_is_replaced(model: Path) -> None:
    """It is found out when it is told of the next game: all are started again then."""
    losing: list[int] = []

    def spoil(place: int, message: Message) -> Message | None:
        if place not in losing:
            return message
        losing.remove(place)
        return None

    transport = ThreadTransport(spoil=spoil)
    game, alone = play(model, transport), play(model)
    game.evaluate(MASKS)
    losing.append(1)
    part = game.part(1, 3)
    assert part.evaluate(MASKS).nll.tobytes() == alone.part(1, 3).evaluate(MASKS).nll.tobytes()
    assert transport.started == [0, 1, 0, 1]
    assert game.evaluate(~np.eye(L, dtype=bool)).nll.tobytes() == alone.evaluate(~np.eye(L, dtype=bool)).nll.tobytes()
    game.close()


@pytest.mark.parametrize(("method", "budget"), [("finercut", None), ("evopress", 60), ("coop", None), ("sleb", None)])
def test_searches_choose_what_they_choose_alone(model: Path, method: str, budget: int | None) -> None:
    game, search = play(model, ThreadTransport()), get_method(method)
    found, expected = (search(one, 2, seed=0, budget=budget) for one in (game, play(model)))
    assert found.mask.tolist() == expected.mask.tolist()
    assert found.details == expected.details
    game.close()


def test_numbers_of_another_game_are_not_taken(model: Path) -> None:
    """Whatever may have gone wrong: the workers' fingerprints are compared with the view's own."""

    def spoil(place: int, message: Message) -> Message:
        if message.kind == "ready":
            message.about["fingerprints"]["calibration"] = Calibration(IDS, "test").fingerprint
        return message

    game = play(model, ThreadTransport(spoil=spoil))
    game.evaluate(MASKS)
    with pytest.raises(RequestError, match="the workers' calibration is not the one here"):
        game.part(1, 3).evaluate(MASKS)
    game.close()
