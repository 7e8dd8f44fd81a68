"""Block influence: a block that hardly turns the residual stream can go. One pass of the full model, one shot.

Source: ShortGPT, arXiv 2403.03853.
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
    """Remove the blocks of least influence BI_i = 1 − mean over tokens of cos(input of block i, its output).

    Needs a game that offers `block_influence() -> float64[n]`, and raises `RequestError` for one that does not. No mask
    is asked and nothing is drawn, so `seed`, `budget` and `progress` have no effect.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    influence = offered(game, "shortgpt", "block_influence", n)
    return Choice(least_valuable(influence, n_remove, allowed), "shortgpt", influence, 0)
