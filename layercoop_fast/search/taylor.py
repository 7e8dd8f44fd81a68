"""First-order importance: what zeroing a player's weights would do to the loss, as its gradient predicts.

Source: Shortened LLaMA, arXiv 2402.02834, the criterion Taylor.
"""

from __future__ import annotations

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.search.base import Asked, Choice, search_method, worst_last


@search_method
def search(asked: Asked) -> Choice:
    """Remove the players of least Σ |w · ∂L/∂w| over their weights, by one forward and one backward pass.

    Needs a game that offers `taylor_importance(progress) -> float64[n]`, and raises `RequestError` for one that does
    not. No mask is asked and nothing is drawn, so `seed` and `budget` have no effect. NaN importances count as the
    highest.
    """
    taylor_importance = getattr(asked.game, "taylor_importance", None)
    if taylor_importance is None:
        raise RequestError("taylor needs a game that offers taylor_importance(), a game on a model: try ppl here")
    importance = np.asarray(taylor_importance(asked.progress), dtype=np.float64)
    if importance.shape != (asked.n,):
        raise RequestError(f"taylor_importance() must give {asked.n} numbers, not {importance}")
    return Choice(asked.least_valuable(worst_last(importance)), "taylor", importance, 0)
