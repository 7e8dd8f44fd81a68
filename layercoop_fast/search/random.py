"""The best of a few random masks: a baseline for other methods."""

from __future__ import annotations

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Game, Progress, n_players_of, play
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, finite_or_none, least_valuable

DEFAULT_BUDGET = 3


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Draw `budget` masks (3 by default) that remove `n_remove` players, measure them in one call, take the best.

    Removing the players of least independent uniform scores gives a uniform mask of the size. A draw that is not
    allowed is replaced by the allowed mask that removes the least total score: random, but not uniform. NaN worths rank
    last. `progress` is not called.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    budget = DEFAULT_BUDGET if budget is None else budget
    if budget < 1:
        raise RequestError(f"the budget must be at least 1 mask, not {budget}")
    rng = np.random.default_rng(seed)
    masks = np.stack([least_valuable(rng.random(n), n_remove, allowed) for _ in range(budget)])
    worths = play(game, masks)
    best = int(np.argsort(-worths, kind="stable")[0])
    return Choice(masks[best], "random", None, budget, {"worth": finite_or_none(worths[best])})
