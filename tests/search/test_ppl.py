from __future__ import annotations

import numpy as np
from toy_games import Additive, Counting, Family, Table

from layercoop_fast.search import ppl


def test_asks_each_single_removal_in_one_call_and_removes_the_harmless() -> None:
    game = Counting(Additive([3.0, 1.0, 4.0, 1.5]))
    choice = ppl.search(game, 2, budget=4)
    assert [call.tolist() for call in game.calls] == [(~np.eye(4, dtype=bool)).tolist()]
    assert choice.mask.tolist() == [True, False, True, False]
    assert choice.n_masks == 4
    assert choice.scores is not None
    np.testing.assert_allclose(choice.scores, [-6.5, -8.5, -5.5, -8.0])


def test_looks_at_single_removals_alone() -> None:
    """Players 0 and 1 are harmless alone and ruinous together: one shot cannot see it."""
    worths = np.zeros(16)
    worths[[0b1110, 0b1101]], worths[[0b1011, 0b0111]], worths[0b1100] = 1.0, 0.5, -9.0
    assert ppl.search(Table(worths), 2).mask.tolist() == [False, False, True, True]


def test_a_removal_without_a_worth_is_the_worst_in_the_family_too() -> None:
    worths = np.arange(16.0)
    worths[0b1110] = np.nan
    for allowed in (None, Family(lambda mask: not mask[3])):
        choice = ppl.search(Table(worths), 3, allowed=allowed)
        assert choice.mask.tolist() == [True, False, False, False]
    assert choice.scores is not None
    assert np.isnan(choice.scores[0])
