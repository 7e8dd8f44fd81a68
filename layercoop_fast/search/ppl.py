"""The worth when each player is removed alone, in one shot.

Source: Shortened LLaMA, arXiv 2402.02834, the criterion PPL.
"""

from __future__ import annotations

import numpy as np

from layercoop_fast.masks.types import play
from layercoop_fast.search.base import Asked, Choice, search_method, worst_last


@search_method
def search(asked: Asked) -> Choice:
    """Remove the players whose removal alone leaves the highest worth.

    n masks are measured in one call; the scores are minus their worths. A removal whose worth is NaN counts as the
    worst. Nothing is random, so `seed` has no effect. Raises `RequestError` where the budget is smaller than n.
    """
    asked.check_budget("ppl", asked.n)
    harm = -play(asked.game, ~np.eye(asked.n, dtype=np.bool_))
    return Choice(asked.least_valuable(worst_last(harm)), "ppl", harm, asked.n)
