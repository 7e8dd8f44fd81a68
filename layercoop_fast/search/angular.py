"""The contiguous run of players that turns the residual stream least. One pass of the full model, one shot.

Source: Gromov and others, "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887.
"""

from __future__ import annotations

import numpy as np

from layercoop_fast.search.base import Asked, Choice, offered, search_method


@search_method
def search(asked: Asked) -> Choice:
    """Remove the run of `n_remove` players with the least angle between the streams before and behind it.

    The first of equal runs is taken, and none that is not allowed. A player's score is the least angle of a run that
    holds it; where no run is allowed at all, the allowed mask of least total score is taken.

    Needs a game that offers `angular_distances(run_length) -> float64[n - run_length + 1]`, and raises `RequestError`
    for one that does not. No mask is asked and nothing is drawn, so `seed`, `budget` and `progress` have no effect.
    """
    n, n_remove, allowed = asked.n, asked.n_remove, asked.allowed
    distances = offered(asked.game, "angular", "angular_distances", n - n_remove + 1, n_remove)
    scores = np.array([distances[max(0, i - n_remove + 1) : i + 1].min() for i in range(n)])
    details = {"distances": distances.tolist(), "start": None}
    for start in np.argsort(distances, kind="stable").tolist():
        mask = np.ones(n, dtype=np.bool_)
        mask[start : start + n_remove] = False
        if allowed is None or allowed.check(mask) is None:
            return Choice(mask, "angular", scores, 0, {**details, "start": start})
    return Choice(asked.least_valuable(scores), "angular", scores, 0, details)
