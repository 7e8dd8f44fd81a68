from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Additive, Counting, Family, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.search import sleb

# Few distinct worths, so that ties are common; NaN and both infinities among them.
worth = st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan, np.inf, -np.inf])


def greedy(game: Table, n_remove: int) -> list[int]:
    """The method one mask at a time: strictly better only, so the first of equals stays; NaN is worse than all."""
    kept = np.ones(game.n_players, dtype=bool)
    removed: list[int] = []
    for _ in range(n_remove):
        best, best_key = -1, (-1.0, 0.0)
        for player in np.flatnonzero(kept):
            mask = kept.copy()
            mask[player] = False
            value = float(game(mask[None])[0])
            key = (0.0, 0.0) if np.isnan(value) else (1.0, value)
            if key > best_key:
                best, best_key = int(player), key
        kept[best] = False
        removed.append(best)
    return removed


@settings(deadline=None)
@given(worths=st.lists(worth, min_size=32, max_size=32), n_remove=st.integers(1, 4))
def test_is_greedy(worths: list[float], n_remove: int) -> None:
    game = Table(worths)
    choice = sleb.search(game, n_remove)
    assert choice.details["greedy_order"] == greedy(game, n_remove)
    assert sorted(np.flatnonzero(~choice.mask)) == sorted(choice.details["greedy_order"])


def test_asks_each_round_in_one_call() -> None:
    game = Counting(Additive(np.arange(8.0)))
    told: list[tuple[str, int, int]] = []
    choice = sleb.search(game, 3, budget=21, progress=lambda *report: told.append(report))
    assert [len(call) for call in game.calls] == [8, 7, 6]
    assert choice.n_masks == 21
    assert told == [("removals", 1, 3), ("removals", 2, 3), ("removals", 3, 3)]
    assert choice.details == {"greedy_order": [0, 1, 2], "greedy_worths": [28.0, 27.0, 25.0]}


def test_a_budget_too_small_is_said_before_anything_is_asked() -> None:
    game = Counting(Additive(np.arange(8.0)))
    with pytest.raises(RequestError, match="sleb measures 21 masks to remove 3 of 8 players: the budget is 20"):
        sleb.search(game, 3, budget=20)
    assert game.calls == []


def test_greed_goes_only_where_an_allowed_mask_can_be_reached() -> None:
    """Player 0 would go first, and must stay: the worths on the way are those of masks that keep it."""
    game = Additive([0.0, 1.0, 2.0, 3.0])
    choice = sleb.search(game, 2, allowed=Family(lambda mask: mask[0]))
    assert np.flatnonzero(~choice.mask).tolist() == [1, 2]
    assert choice.details == {"greedy_order": [1, 2], "greedy_worths": [5.0, 3.0]}
