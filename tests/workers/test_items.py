"""Workers that measure items with options: told all of them, they send the numbers that one process finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from thread_workers import ThreadTransport, opening
from tiny_models import save_tiny

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.game.item_utility import choice_utility
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.texts.items import Item, Items, fitting, tokenise
from layercoop_fast.workers.dispatch import Workers

L = 4
MASKS = np.array([[True] * L, [True, False, True, True], [False, True, True, False], [False] * L])
ITEMS = [Item(f"{n} + {n} = ", (str(2 * n), "none", "non", "é"), n % 4) for n in range(7)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("items") / "model", n_layers=L)


def game_of(model: Path, *, workers: bool, share: bool = True, **options) -> ModelGame:
    checkpoint = open_checkpoint(str(model))
    skeleton = Skeleton(checkpoint.model)
    choices = fitting(tokenise(ITEMS, checkpoint.tokenizer, shots=2), skeleton, share=share)
    crew = Workers(ThreadTransport(), opening(model)) if workers else None
    arguments = {"utility": "margin", **options}
    return ModelGame(checkpoint, choices, skeleton=skeleton, workers=crew, **arguments)


@pytest.mark.parametrize("share", [True, False])
def test_the_bits_of_one_process(model: Path, share: bool) -> None:
    alone = game_of(model, workers=False, share=share)
    expected = alone.evaluate(MASKS)
    game = game_of(model, workers=True, share=share)
    found = game.evaluate(MASKS)
    assert found.fingerprints == expected.fingerprints
    assert found.fingerprints["numerics"]["context"] == ("shared" if share else "whole")
    assert np.array_equal(found.window_nll, expected.window_nll)
    assert np.array_equal(found.worths, expected.worths)
    assert len(set(found.worths.tolist())) == len(MASKS), "all masks are worth the same"
    assert game.evaluations.unique == len(MASKS)
    game.close()


def test_halves_and_a_worth_of_ones_own(model: Path) -> None:
    """What workers are told is the name alone: the function stays here."""
    longest = choice_utility(
        "longest", lambda log_probs, labels: float(max(len(o) for item in log_probs for o in item))
    )
    game = game_of(model, workers=True, players="sublayers", utility=longest)
    masks = np.repeat(MASKS, 2, axis=1)
    found = game.evaluate(masks)
    alone = game_of(model, workers=False, players="sublayers", utility=longest)
    assert np.array_equal(found.window_nll, alone.evaluate(masks).window_nll)
    assert found.worths.tolist() == [6.0] * len(masks)  # two blanks, one of them the context's, and "none"
    game.close()


def test_a_store_filled_by_workers_is_known_to_one_process(model: Path, tmp_path: Path) -> None:
    game = game_of(model, workers=True, store=tmp_path / "a.store")
    found = game.evaluate(MASKS)
    game.close()
    alone = game_of(model, workers=False, store=tmp_path / "a.store")
    assert np.array_equal(alone.evaluate(MASKS).worths, found.worths)
    assert alone.evaluations.unique == 0
    alone.close()


def test_items_by_message(model: Path) -> None:
    game = game_of(model, workers=False)
    assert isinstance(game.calibration, Items)
    again = Items.of(game.calibration.as_json(), "cpu")
    assert again.fingerprint == game.calibration.fingerprint
    assert again.description == game.calibration.description
    assert again.groups == game.calibration.groups
    with pytest.raises(RequestError, match="these are not items with options"):
        Items.of({"groups": [], "layout": None, "spec": "", "shots": 0, "share": True}, "cpu")
