from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Counting, Family, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.search import exhaustive


@settings(deadline=None)
@given(
    worths=st.lists(st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]), min_size=64, max_size=64),
    n_remove=st.integers(1, 5),
)
def test_is_the_best_of_all_masks_of_the_size(worths: list[float], n_remove: int) -> None:
    game = Counting(Table(worths))
    choice = exhaustive.search(game, n_remove)
    masks = all_masks(6)
    masks = masks[(~masks).sum(axis=1) == n_remove]
    truth = np.where(np.isnan(game.game(masks)), -np.inf, game.game(masks)).max()
    reached = game.game(choice.mask[None])[0]
    assert reached == truth or (np.isnan(reached) and truth == -np.inf)
    assert game.asked == choice.n_masks == len(masks)
    assert (~choice.mask).sum() == n_remove


def test_asks_only_what_is_allowed_and_in_calls_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layercoop_fast.search.exhaustive._CALL", 4)
    game = Counting(Table(np.arange(64.0)))
    told: list[tuple[str, int, int]] = []
    choice = exhaustive.search(
        game, 2, allowed=Family(lambda mask: not mask[5]), progress=lambda *report: told.append(report)
    )
    assert choice.n_masks == game.asked == 5
    assert all(not call[:, 5].any() and len(call) <= 4 for call in game.calls)
    assert choice.mask.tolist() == [False, True, True, True, True, False]
    assert told[-1] == ("masks of the size", 15, 15)


def test_too_many_masks_are_refused_before_anything_is_asked() -> None:
    game = Counting(Table(np.zeros(1 << 20)))
    with pytest.raises(RequestError, match="measures 184756 masks to remove 10 of 20 players: the budget is 20000"):
        exhaustive.search(game, 10)
    assert game.asked == 0
