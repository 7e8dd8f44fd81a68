"""A block that hardly changes the geometry of its tokens can go. One pass of the full model, one shot.

Like `shortgpt`, with centred kernel alignment (CKA) of a block's input and output for the mean cosine. It is a
plain relative of topology-aware pruning (arXiv 2604.16502), which is the method `zigzag`: this is three products.
"""

from __future__ import annotations

from layercoop_fast.masks.types import Game, Progress, n_players_of
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, least_valuable, offered


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Remove the blocks of least 1 − CKA(input of block i, its output).

    Needs a game that offers `cka_distances() -> float64[n]`, and raises `RequestError` for one that does not. No mask
    is asked and nothing is drawn, so `seed`, `budget` and `progress` have no effect.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    distances = offered(game, "cka", "cka_distances", n)
    return Choice(least_valuable(distances, n_remove, allowed), "cka", distances, 0)
