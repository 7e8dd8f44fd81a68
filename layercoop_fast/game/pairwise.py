"""The pairwise game, whose Shapley values are known in closed form at any number of players."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Masks, check_masks

# Masks turned to float64 at a time: bounds the [rows, n] scratch whatever is asked.
_BLOCK = 1 << 14


@dataclass(frozen=True, eq=False)
class PairwiseGame:
    """v(m) = w₀ + Σ_i w_i m_i + Σ_{i<j} w_ij m_i m_j, with m_i = 1 where player i is kept.

    A linear game is one whose `pairs` are zero. Raises `RequestError` for other shapes, for weights that are NaN or
    infinite, and for a `pairs` that has an entry on or below its diagonal (each pair is to be said once).

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import PairwiseGame
        >>> game = PairwiseGame(0.0, np.array([1.0, 2.0, 3.0]), np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]))
        >>> game(np.array([[True, True, False]])).tolist()
        [4.0]
        >>> game.shapley().tolist()  # the pair's 1 is shared
        [1.5, 2.5, 3.0]
    """

    bias: float
    """w₀, the worth of no player."""
    linear: Floats
    """w_i: `float64[n]`, n ≥ 1."""
    pairs: Floats
    """w_ij: `float64[n, n]`, zero on and below the diagonal."""

    def __post_init__(self) -> None:
        linear = np.asarray(self.linear, dtype=np.float64)
        pairs = np.asarray(self.pairs, dtype=np.float64)
        if linear.ndim != 1 or len(linear) == 0 or pairs.shape != (len(linear), len(linear)):
            raise RequestError(
                f"a pairwise game has weights [n] and [n, n], not {list(linear.shape)} and {list(pairs.shape)}"
            )
        if not (np.isfinite(self.bias) and np.isfinite(linear).all() and np.isfinite(pairs).all()):
            raise RequestError("a pairwise game has finite weights: some are NaN or infinite")
        if np.tril(pairs).any():
            raise RequestError(
                "pairs must be zero on and below the diagonal: each pair is said once, at [i, j] with i < j"
            )
        object.__setattr__(self, "bias", float(self.bias))
        object.__setattr__(self, "linear", linear)
        object.__setattr__(self, "pairs", pairs)

    @property
    def n_players(self) -> int:
        """Number of players n."""
        return len(self.linear)

    def __call__(self, masks: Masks) -> Floats:
        """Return the worths `float64[M]` of `masks` (`bool[M, n]`)."""
        masks = check_masks(masks, self.n_players)
        worths = np.empty(len(masks))
        for low in range(0, len(masks), _BLOCK):
            kept = masks[low : low + _BLOCK].astype(np.float64)
            worths[low : low + _BLOCK] = self.bias + ((kept @ self.pairs + self.linear) * kept).sum(axis=1)
        return worths

    def flips(self, masks: Masks) -> tuple[Floats, Floats]:
        """Return the worths `float64[M]` of the masks and `float64[M, n]` of each mask with player i flipped.

        Player i adds w_i + Σ_j w_ij m_j to whatever mask lacks it, so all flips cost one product (`FlipGame`).
        """
        masks = check_masks(masks, self.n_players)
        worths = self(masks)
        gains = self.linear + masks.astype(np.float64) @ self.coupling
        return worths, worths[:, None] + np.where(masks, -gains, gains)

    @property
    def coupling(self) -> Floats:
        """The pairs as a symmetric `float64[n, n]` with a zero diagonal: w_ij at [i, j] and at [j, i]."""
        both: Floats = self.pairs + self.pairs.T
        return both

    def shapley(self) -> Floats:
        """Return the exact Shapley values φ_i = w_i + ½ Σ_j w_ij, `float64[n]`: a pair is shared alike by its two."""
        values: Floats = self.linear + 0.5 * self.coupling.sum(axis=1)
        return values
