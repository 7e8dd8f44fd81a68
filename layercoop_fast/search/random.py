"""The best of a few random masks: a baseline for other methods."""

from __future__ import annotations

import numpy as np

from layercoop_fast.masks.types import play
from layercoop_fast.search.base import Asked, Choice, budget_or, finite_or_none, search_method

DEFAULT_BUDGET = 3


@search_method
def search(asked: Asked) -> Choice:
    """Draw `budget` masks (3 by default) that remove `n_remove` players, measure them in one call, take the best.

    Removing the players of least independent uniform scores gives a uniform mask of the size. A draw that is not
    allowed is replaced by the allowed mask that removes the least total score: random, but not uniform. NaN worths rank
    last. `progress` is not called.
    """
    budget = budget_or(asked.budget, DEFAULT_BUDGET)
    rng = np.random.default_rng(asked.seed)
    masks = np.stack([asked.least_valuable(rng.random(asked.n)) for _ in range(budget)])
    worths = play(asked.game, masks)
    best = int(np.argsort(-worths, kind="stable")[0])
    return Choice(masks[best], "random", None, budget, {"worth": finite_or_none(worths[best])})
