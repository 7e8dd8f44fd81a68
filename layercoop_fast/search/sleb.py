"""Greedy removal: the player whose removal costs least worth is removed, then the next among those left.

Source: SLEB, arXiv 2402.09025.
"""

from __future__ import annotations

from layercoop_fast.search.base import Asked, Choice, search_method
from layercoop_fast.search.greedy import greedy


@search_method
def search(asked: Asked) -> Choice:
    """Remove one player at a time, each time the one without which the game's worth is highest (`search.greedy`).

    Nothing is random, so `seed` has no effect. Raises `RequestError` where the budget is smaller than the number of
    masks that greedy removal measures.
    """
    return greedy(asked, "sleb")
