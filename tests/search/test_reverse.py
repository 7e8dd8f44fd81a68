from __future__ import annotations

import numpy as np
from toy_games import Additive, Counting, Family

from layercoop_fast.search import reverse


def test_removes_the_last_and_asks_nothing() -> None:
    game = Counting(Additive(np.ones(6)))
    choice = reverse.search(game, 2)
    assert choice.mask.tolist() == [True, True, True, True, False, False]
    assert game.calls == []
    assert choice.n_masks == 0


def test_stays_near_the_end_where_the_last_must_stay() -> None:
    choice = reverse.search(Additive(np.ones(6)), 2, allowed=Family(lambda mask: mask[5]))
    assert np.flatnonzero(~choice.mask).tolist() == [3, 4]
