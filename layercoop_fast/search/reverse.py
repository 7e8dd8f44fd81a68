"""Remove the last players, by the rule of thumb that late layers matter least; nothing is measured."""

from __future__ import annotations

import numpy as np

from layercoop_fast.search.base import Asked, Choice, search_method


@search_method
def search(asked: Asked) -> Choice:
    """Remove the last `n_remove` players, or the allowed set of the highest total index.

    No mask is measured and nothing is random, so `seed`, `budget` and `progress` have no effect.
    """
    from_the_end = np.arange(asked.n, 0, -1, dtype=np.float64)
    return Choice(asked.least_valuable(from_the_end), "reverse", None, 0)
