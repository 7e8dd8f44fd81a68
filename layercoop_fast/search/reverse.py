"""Remove the last players, by the rule of thumb that late layers matter least; nothing is measured."""

from __future__ import annotations

import numpy as np

from layercoop_fast.masks.types import Game, Progress, n_players_of
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, least_valuable


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Remove the last `n_remove` players, or the allowed set of the highest total index.

    No mask is measured and nothing is random, so `seed`, `budget` and `progress` have no effect.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    from_the_end = np.arange(n, 0, -1, dtype=np.float64)
    return Choice(least_valuable(from_the_end, n_remove, allowed), "reverse", None, 0)
