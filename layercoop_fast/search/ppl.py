"""The worth when each player is removed alone, in one shot.

Source: Shortened LLaMA, arXiv 2402.02834, the criterion PPL.
"""

from __future__ import annotations

import numpy as np

from layercoop_fast.masks.types import Game, Progress, n_players_of, play
from layercoop_fast.search.base import Allowed, Choice, check_budget, check_n_remove, least_valuable, worst_last


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Remove the players whose removal alone leaves the highest worth.

    n masks are measured in one call; the scores are minus their worths. A removal whose worth is NaN counts as the
    worst. Nothing is random, so `seed` has no effect. Raises `RequestError` where the budget is smaller than n.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    check_budget("ppl", n, budget, n, n_remove)
    harm = -play(game, ~np.eye(n, dtype=np.bool_))
    return Choice(least_valuable(worst_last(harm), n_remove, allowed), "ppl", harm, n)
