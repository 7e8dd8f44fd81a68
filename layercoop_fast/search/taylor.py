"""First-order importance: what zeroing a player's weights would do to the loss, as its gradient predicts.

Source: Shortened LLaMA, arXiv 2402.02834, the criterion Taylor.
"""

from __future__ import annotations

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Game, Progress, n_players_of
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, least_valuable, worst_last


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Remove the players of least Σ |w · ∂L/∂w| over their weights, by one forward and one backward pass.

    Needs a game that offers `taylor_importance(progress) -> float64[n]`, and raises `RequestError` for one that does
    not. No mask is asked and nothing is drawn, so `seed` and `budget` have no effect. NaN importances count as the
    highest.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    taylor_importance = getattr(game, "taylor_importance", None)
    if taylor_importance is None:
        raise RequestError("taylor needs a game that offers taylor_importance(), a game on a model: try ppl here")
    importance = np.asarray(taylor_importance(progress), dtype=np.float64)
    if importance.shape != (n,):
        raise RequestError(f"taylor_importance() must give {n} numbers, not {importance}")
    return Choice(least_valuable(worst_last(importance), n_remove, allowed), "taylor", importance, 0)
