"""Greedy removal: the player whose removal hurts least goes, then the next is sought among those left.

Source: SLEB, arXiv 2402.09025.
"""

from __future__ import annotations

from layercoop_fast.masks.types import Game, Progress
from layercoop_fast.search.base import Allowed, Choice
from layercoop_fast.search.greedy import greedy


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Remove one player at a time, each time the one without which the game's worth is highest (`search.greedy`).

    Nothing is drawn, so `seed` has no effect. Raises `RequestError` when the budget is smaller than what greed asks.
    """
    return greedy(game, n_remove, method="sleb", budget=budget, allowed=allowed, progress=progress)
