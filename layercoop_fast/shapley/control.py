"""Control variates: games of known Shapley values that are close to the game in question.

What two games have in common need not be sampled. With a control c of known values φ(c), an estimator samples the
difference v − β·c, whose marginals vary less the closer c is to v, and adds β·φ(c).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.types import Floats, Game, Masks

# Ridge of `fit_pairwise`, as a share of the mean variance of a feature: it decides what the sample does not.
_RIDGE = 1e-3
# Masks whose features are held at a time.
_BLOCK = 1 << 12


@dataclass(frozen=True, eq=False)
class Control:
    """A game and its exact Shapley values: a `PairwiseGame`, or a surrogate whose 2ⁿ masks were enumerated.

    The values are not checked: an error in them goes into every estimate made with the control.

    Attributes:
        game: the control.
        values: `float64[n]`, its exact Shapley values.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import Control, PairwiseGame, shapley_values
        >>> near = PairwiseGame(0.0, np.array([1.0, 2.0, 3.0]), np.zeros((3, 3)))
        >>> def game(masks):  # near a game of known values, and not quite
        ...     return near(masks) + 0.3 * masks.all(axis=1)
        >>> found = shapley_values(game, n_players=3, n_permutations=100, control=Control.pairwise(near))
        >>> found.values.round(1).tolist()
        [1.1, 2.1, 3.1]
    """

    game: Game
    values: Floats

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise RequestError(f"a control needs its exact Shapley values, finite float64[n], not shape {values.shape}")
        object.__setattr__(self, "values", values)

    @classmethod
    def pairwise(cls, game: PairwiseGame) -> Control:
        """The control of a pairwise game, whose values are known in closed form."""
        return cls(game, game.shapley())


def check_control(control: Control, n_players: int) -> None:
    """Raise `RequestError` unless the control has as many players as the game."""
    if len(control.values) != n_players:
        raise RequestError(f"the control has {len(control.values)} players, the game {n_players}")


def fit_pairwise(masks: Masks, worths: Floats) -> PairwiseGame:
    """Fit a pairwise game to worths by ridge least squares, in closed form.

    `masks` `bool[M, n]`, M ≥ 1, `worths` `float64[M]`, finite. Features and worths are centred, so that the bias is not
    shrunk; the ridge is a thousandth of the mean variance of a feature. O(M·f² + f³) for f = n + n(n − 1)/2 features.
    """
    n = masks.shape[1]
    first, second = np.triu_indices(n, 1)
    level = float(worths.mean())
    counts = np.zeros(n + len(first))
    gram = np.zeros((len(counts), len(counts)))
    target = np.zeros(len(counts))
    for low in range(0, len(masks), _BLOCK):
        block = masks[low : low + _BLOCK]
        features = np.concatenate([block, block[:, first] & block[:, second]], axis=1).astype(np.float64)
        counts += features.sum(axis=0)
        gram += features.T @ features  # of zeros and ones: whole numbers, so that centring below cancels no digits
        target += features.T @ (worths[low : low + _BLOCK] - level)
    centre = counts / len(masks)
    gram -= np.outer(counts, centre)
    gram[np.diag_indices_from(gram)] += _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
    weights = np.asarray(np.linalg.solve(gram, target), dtype=np.float64)
    interactions = np.zeros((n, n))
    interactions[first, second] = weights[n:]
    return PairwiseGame(level - float(centre @ weights), weights[:n], interactions)
