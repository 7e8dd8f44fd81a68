from __future__ import annotations

import numpy as np
from toy_games import Additive, Counting, Table

from layercoop_fast.search import random


def test_takes_the_best_of_what_it_asked() -> None:
    game = Counting(Additive([1.0, 2.0, 4.0, 8.0, 16.0]))
    choice = random.search(game, 2, budget=7, seed=5)
    (asked,) = game.calls
    assert asked.shape == (7, 5)
    assert (asked.sum(axis=1) == 3).all()
    worths = game.game(asked)
    assert choice.details["worth"] == worths.max() > worths.min()
    np.testing.assert_array_equal(choice.mask, asked[worths.argmax()])
    assert choice.n_masks == 7


def test_asks_three_unless_told() -> None:
    game = Counting(Additive(np.ones(5)))
    random.search(game, 2)
    assert game.asked == 3


def test_masks_are_uniform() -> None:
    """Chi-square on the 10 pairs of 5; 9 degrees of freedom, exceeded once in 10,000 at 33.7."""
    game = Counting(Additive(np.ones(5)))
    random.search(game, 2, budget=5000, seed=1)
    counts = np.unique(game.calls[0] @ (1 << np.arange(5)), return_counts=True)[1]
    assert len(counts) == 10
    assert ((counts - 500) ** 2 / 500).sum() < 33.7


def test_a_worth_that_is_no_number_never_wins() -> None:
    worths = np.full(16, np.nan)
    worths[0b0111] = -1e9
    choice = random.search(Table(worths), 1, budget=50)
    assert choice.mask.tolist() == [True, True, True, False]
    assert random.search(Table(np.full(16, np.nan)), 1).details == {"worth": None}


def test_a_seed_is_a_choice() -> None:
    game = Additive(np.ones(30))
    first, again, other = (random.search(game, 5, seed=seed).mask for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
