"""What a game counts, keeps when it is stopped, and makes of shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.game.utility import get_utility
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.items import Items
from layercoop_fast.texts.layout import Layout
from layercoop_fast.texts.token_tree import Scored

LAYERS = 3
MASKS = np.array([[True, False, True], [False, True, True], [True, True, False], [True, True, True]])


def game_of(**options: Any) -> ModelGame:
    ids = torch.randint(3, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    checkpoint = Checkpoint(tiny_model("llama", LAYERS), tiny_tokenizer(), "tiny")
    return ModelGame(checkpoint, Calibration(ids, "test"), **options)


def test_masks_that_are_known_are_not_counted_again() -> None:
    game = game_of()
    game(MASKS[:2])  # and the full model, which worths are relative to
    assert game.evaluations.unique == 3
    game(MASKS[[0, 0, 1, 2]])
    assert (game.evaluations.unique, game.evaluations.masks) == (4, 6)


def test_what_was_measured_before_a_stop_is_in_the_store(tmp_path: Path) -> None:
    game = game_of(store=tmp_path / "store")
    begin = game.masked.scorer.begin
    left = 2

    def stopping(state: torch.Tensor) -> Callable[[], Any]:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return begin(state)

    game.masked.scorer.begin = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        game(MASKS)
    with Store(tmp_path / "store") as store:
        assert [one.masks for one in store.games()] == [2]


def test_a_blend_weighs_the_rise_of_nll_by_its_share() -> None:
    utility = get_utility("blend:0.25")
    worth = utility.worth(np.array([1.0]), np.array([2.0]), 0.5)  # type: ignore[union-attr]
    assert worth.tolist() == [-(0.25 * 0.5 + 0.75 * 2.0)]


def test_what_stands_before_options_is_part_of_what_items_are() -> None:
    layout = Layout(*(np.array(numbers, np.int64) for numbers in ([2], [0], [1, 1], [3, 3])))
    prints = [
        Items(((Scored((context, 5, 7), 2), Scored((context, 5, 8), 2)),), layout, "test").fingerprint
        for context in (1, 2)
    ]
    assert prints[0]["items"] != prints[1]["items"]


def test_nothing_is_said_from_a_single_window() -> None:
    assert probability_better(np.array([1.0]), np.array([2.0]), rng=np.random.default_rng(0)) is None
