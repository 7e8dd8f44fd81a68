"""A block that leaves the topology of its tokens alone can go. One pass of the full model, one shot.

Components and loops of the clouds before and behind a block are followed by zigzag persistence (`masked/topology.py`;
arXiv 2410.11042 and, on vision-language models, 2604.16502). `cka` is its plainer relative.
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
    """Remove the blocks across which the largest share of components and loops lives on.

    Needs a game that offers `zigzag_changes() -> float64[n]`, and raises `RequestError` for one that does not. No mask
    is asked and nothing is drawn, so `seed`, `budget` and `progress` have no effect.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    changes = offered(game, "zigzag", "zigzag_changes", n)
    return Choice(least_valuable(changes, n_remove, allowed), "zigzag", changes, 0)
