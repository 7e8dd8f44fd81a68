"""Indices that are weighted sums of mean marginals by size: Shapley, Banzhaf, Beta-Shapley, and of pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import comb, exp, lgamma

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats


@dataclass(frozen=True, eq=False)
class MeanMarginals:
    """What each player, and each pair of players, adds on average to the coalitions of every size.

    Attributes:
        by_size: D, `float64[n, n]`: D[i, k] is the mean of f(m ∪ i) − f(m) over the masks m of k players without i.
        pairs_by_size: `float64[n, n, n − 1]`, symmetric: [i, j, k] is the mean of f(m ∪ ij) − f(m ∪ i) − f(m ∪ j) +
            f(m) over the masks m of k players without i and j; 0 where i = j. None unless interactions were asked for.
    """

    by_size: Floats
    pairs_by_size: Floats | None

    @property
    def n_players(self) -> int:
        """n, the number of players."""
        return len(self.by_size)

    def shapley(self) -> Floats:
        """The Shapley values, `float64[n]`: all sizes have equal weight. They sum to f(all) − f(none)."""
        values: Floats = self.by_size.mean(axis=1)
        return values

    def banzhaf(self) -> Floats:
        """The Banzhaf values, `float64[n]`: all coalitions have equal weight."""
        n = self.n_players
        return self._weighed([comb(n - 1, k) / 2 ** (n - 1) for k in range(n)])

    def beta_shapley(self, alpha: float, beta: float) -> Floats:
        """The Beta(α, β)-Shapley values, `float64[n]`; (1, 1) are the Shapley values.

        Size k has the weight C(n − 1, k)·B(k + β, n − 1 − k + α) / B(α, β): large α favours small coalitions. Source:
        Kwon and Zou, 2022. Raises `RequestError` unless both are positive.
        """
        if not (alpha > 0 and beta > 0):
            raise RequestError(f"alpha and beta must be positive, not {alpha} and {beta}")
        n = self.n_players
        return self._weighed(
            [comb(n - 1, k) * exp(_log_beta(k + beta, n - 1 - k + alpha) - _log_beta(alpha, beta)) for k in range(n)]
        )

    def at_sizes(self, sizes: Iterable[int]) -> Floats:
        """The mean of D over sizes, `float64[n]`: sizes of the coalition that a player joins, each in 0..n − 1."""
        chosen = list(sizes)
        if not chosen or not all(0 <= size < self.n_players for size in chosen):
            raise RequestError(f"sizes must be in 0..{self.n_players - 1}, at least one, not {chosen}")
        values: Floats = self.by_size[:, chosen].mean(axis=1)
        return values

    def sii(self) -> Floats:
        """The Shapley interaction index of every pair, `float64[n, n]`, symmetric with a diagonal of 0.

        All sizes of the other players' coalition have equal weight. Source: Grabisch and Roubens, 1999. Raises
        `RequestError` if interactions were not asked for.
        """
        if self.pairs_by_size is None:
            raise RequestError("pairs were not enumerated: ask for interactions=True")
        n = self.n_players
        index: Floats = self.pairs_by_size.sum(axis=2) / max(n - 1, 1)
        return index

    def k_sii(self) -> tuple[Floats, Floats]:
        """The k-SII of order 2: what players add alone, `float64[n]`, and what pairs add, `float64[n, n]`.

        The pairs are `sii`; the players are φ_i − ½ Σ_j SII_ij, so that all together sum to f(all) − f(none) (each pair
        once). Source: Bordt and von Luxburg, 2023.
        """
        pairs = self.sii()
        return self.shapley() - pairs.sum(axis=1) / 2, pairs

    def _weighed(self, weights: list[float]) -> Floats:
        values: Floats = self.by_size @ np.array(weights)
        return values


def marginals_by_size(shifts: Floats, sizes: Floats, players: Floats) -> Floats:
    """Return D, `float64[n, n]` (see `MeanMarginals.by_size`), from sums of f(m) − shifts[size of m].

    `sizes` `float64[n + 1]` are over all masks of a size, `players` `float64[n, n + 1]` over those with player i.
    """
    n = len(players)
    binomial = _binomials(n - 1)
    kept = shifts[1:] + players[:, 1:] / binomial
    removed = shifts[:-1] + (sizes[:-1] - players[:, :-1]) / binomial
    marginals: Floats = kept - removed
    return marginals


def interactions_by_size(shifts: Floats, sizes: Floats, players: Floats, pairs: Floats) -> Floats:
    """Return `MeanMarginals.pairs_by_size`, `float64[n, n, n − 1]`, from sums as for `marginals_by_size`.

    `pairs` `float64[n, n, n + 1]` are over the masks with both players i < j; the rest of it is not read.
    """
    n = len(players)
    result = np.zeros((n, n, max(n - 1, 0)))
    if n < 2:
        return result
    binomial = _binomials(n - 2)
    i, j = np.triu_indices(n, 1)
    both = pairs[i, j]
    one, other = players[i] - both, players[j] - both
    neither = sizes - one - other - both
    # Means over the masks of k + 2, k + 1, k + 1 and k players: what is common to them, the shifts, is added back once.
    change = (both[:, 2:] - one[:, 1:-1] - other[:, 1:-1] + neither[:, :-2]) / binomial
    result[i, j] = result[j, i] = change + (shifts[2:] - 2 * shifts[1:-1] + shifts[:-2])
    return result


def _binomials(n: int) -> Floats:
    return np.array([comb(n, k) for k in range(n + 1)], dtype=np.float64)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
