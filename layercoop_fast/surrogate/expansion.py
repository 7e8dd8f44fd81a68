"""What removing players costs, expanded to pairs, and the uncertainty of that: a Gaussian process over removed sets.

With R the set of removed players,

    loss(R) = Σ_{i ∈ R} a_i + Σ_{i < j ∈ R} b_ij,      a_i = α + a'_i,      b_ij = β + n_ij + b'_ij

where α, β, a', b' and n are independent normal numbers of mean 0, and n_ij exists only for players at most `REACH`
apart: neighbours replace each other. With c the number of players that R and S have in common,

    cov(loss(R), loss(S)) = v₀ |R| |S| + v₁ c + w₀ (|R| choose 2)(|S| choose 2) + w₁ (c choose 2) + Σ_d w₂/d c_d

where c_d counts the pairs of players d apart that they have in common, d up to `REACH`.

This is ridge regression on single players and pairs, in the form that needs no matrix of pairs × pairs and gives
standard errors: a few dozen sets tell something about all n(n + 1)/2 coefficients. The variances of pairs, neighbours
and noise, relative to that of single players, are chosen by marginal likelihood from a small grid, and the common scale
in closed form.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Masks

REACH = 3
# Variances, in units of the variance of a single player's own part.
_COMMON, _COMMON_PAIR = 1.0, 0.1
_PAIRS = (0.001, 0.01, 0.1)
_NEIGHBOURS = (0.0, 0.1)
_NOISE = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class _Strengths:
    """Variances relative to that of a'_i: of pairs, of the nearest neighbours, and of noise."""

    pairs: float
    neighbours: float
    noise: float


class Expansion:
    """A fit to measured losses.

    Args:
        removed: bool [M, n], True where a player is removed, M ≥ 1.
        losses: float64 [M], finite: what each set costs beyond the full model.
        noise: float64 [M], at least 1: the variance of each measurement's noise, relative to the least noisy one.
        strengths: of an earlier fit (`self.strengths`), to be used again; None: they are chosen from the losses.

    Attributes:
        linear: float64 [n], the expected a_i.
        pairs: float64 [n, n], the expected b_ij, symmetric with a zero diagonal.
        strengths: relative variances of pairs, neighbours and noise.

    Raises:
        RequestError: for other shapes and for losses that are not finite.
    """

    def __init__(
        self, removed: Masks, losses: Floats, noise: Floats | None = None, *, strengths: _Strengths | None = None
    ) -> None:
        noise = np.ones(len(losses)) if noise is None else noise
        if removed.ndim != 2 or losses.shape != (len(removed),) or noise.shape != losses.shape or not len(losses):
            raise RequestError(
                f"an expansion is fitted to sets [M, n] with losses [M] and noise [M], not {list(removed.shape)}, "
                f"{list(losses.shape)} and {list(noise.shape)}"
            )
        if not np.isfinite(losses).all():
            raise RequestError("an expansion is fitted to finite losses: some are NaN or infinite")
        self.n_players = removed.shape[1]
        self._removed = removed.astype(np.float64)
        self._losses, self._noise = losses, noise
        self.strengths = strengths or self._most_likely()
        kernel = self._kernel(self._removed, self._removed, self.strengths)
        kernel[np.diag_indices(len(kernel))] += self.strengths.noise * noise
        # Inverted once: every prediction is then a product, thousands of sets at a time.
        self._whiten = np.linalg.solve(np.linalg.cholesky(kernel), np.eye(len(kernel)))
        half = self._whiten @ losses
        self._scale = max(float(half @ half) / len(losses), np.finfo(np.float64).tiny)
        self._weights = self._whiten.T @ half
        self.linear, self.pairs = self._coefficients()

    @property
    def noise(self) -> float:
        """Standard deviation of the least noisy measurement about the expansion, in units of the losses."""
        return float(np.sqrt(self.strengths.noise * self._scale))

    def mean(self, removed: Masks) -> Floats:
        """Expected losses of sets, bool [M, n] → float64 [M]."""
        sets = removed.astype(np.float64)
        means: Floats = sets @ self.linear + 0.5 * np.einsum("mi,mi->m", sets @ self.pairs, sets)
        return means

    def predict(self, removed: Masks) -> tuple[Floats, Floats]:
        """Expected losses of sets (bool [M, n]), float64 [M], and their covariance, float64 [M, M]."""
        sets = removed.astype(np.float64)
        across = self._kernel(self._removed, sets, self.strengths)
        half = self._whiten @ across
        covariance = self._scale * (self._kernel(sets, sets, self.strengths) - half.T @ half)
        return self.mean(removed), covariance

    def variances(self, removed: Masks) -> Floats:
        """The diagonal of `predict`'s covariance, float64 [M], of sets bool [M, n] too many for the whole matrix."""
        sets, kept = removed.astype(np.float64), self.strengths
        counts = sets.sum(axis=1)
        pairs = counts * (counts - 1) / 2
        prior = _COMMON * counts**2 + counts + kept.pairs * (pairs + _COMMON_PAIR * pairs**2)
        for distance in range(1, min(REACH, self.n_players - 1) + 1):
            prior += kept.neighbours / distance * (sets[:, :-distance] * sets[:, distance:]).sum(axis=1)
        half = self._whiten @ self._kernel(self._removed, sets, kept)
        left: Floats = self._scale * np.maximum(prior - (half * half).sum(axis=0), 0.0)
        return left

    def values(self) -> tuple[Floats, Floats]:
        """Shapley value of keeping each player, φ_i = a_i + ½ Σ_j b_ij, and its standard error: float64 [n] each."""
        n, kept = self.n_players, self.strengths
        own = self._removed
        counts = own.sum(axis=1)
        paired = own * (counts[:, None] - 1)
        across = _COMMON * counts[:, None] + own + 0.5 * kept.pairs * paired
        across += 0.5 * _COMMON_PAIR * kept.pairs * (n - 1) * (counts * (counts - 1) / 2)[:, None]
        prior = np.full(n, _COMMON + 1 + 0.25 * kept.pairs * ((n - 1) + _COMMON_PAIR * (n - 1) ** 2))
        for distance in range(1, min(REACH, n - 1) + 1):
            strength = kept.neighbours / distance
            both = own[:, :-distance] * own[:, distance:]
            for players in (slice(None, -distance), slice(distance, None)):
                across[:, players] += 0.5 * strength * both
                prior[players] += 0.25 * strength
        half = self._whiten @ across
        variance = self._scale * np.maximum(prior - (half * half).sum(axis=0), 0.0)
        return self.linear + 0.5 * self.pairs.sum(axis=1), np.sqrt(variance)

    def pairs_stderr(self) -> Floats:
        """Standard errors of `pairs`, float64 [n, n], symmetric with a zero diagonal."""
        n, own, kept = self.n_players, self._removed, self.strengths
        first, second = np.triu_indices(n, 1)
        apart = second - first
        strength = kept.pairs + np.where(apart <= REACH, kept.neighbours / apart, 0.0)
        counts = own.sum(axis=1)
        across = strength * own[:, first] * own[:, second]
        across += _COMMON_PAIR * kept.pairs * (counts * (counts - 1) / 2)[:, None]
        half = self._whiten @ across
        prior = strength + _COMMON_PAIR * kept.pairs
        errors = np.zeros((n, n))
        errors[first, second] = np.sqrt(self._scale * np.maximum(prior - (half * half).sum(axis=0), 0.0))
        symmetric: Floats = errors + errors.T
        return symmetric

    def _coefficients(self) -> tuple[Floats, Floats]:
        """Expected a, float64 [n], and b, float64 [n, n] (symmetric, zero diagonal)."""
        n, own, weights = self.n_players, self._removed, self._weights
        counts = own.sum(axis=1)
        linear = _COMMON * float(weights @ counts) + weights @ own
        common = _COMMON_PAIR * self.strengths.pairs * float(weights @ (counts * (counts - 1) / 2))
        together = own.T @ (weights[:, None] * own)
        apart = np.abs(np.arange(n)[:, None] - np.arange(n))
        near = np.where((apart >= 1) & (apart <= REACH), self.strengths.neighbours / np.maximum(apart, 1), 0.0)
        pairs = common + (self.strengths.pairs + near) * together
        np.fill_diagonal(pairs, 0.0)
        return linear, pairs

    def _kernel(self, left: Floats, right: Floats, strengths: _Strengths) -> Floats:
        """Covariances of the losses of sets, float64 [A, n] and [B, n] → [A, B], relative to that of a'_i."""
        a, b = left.sum(axis=1), right.sum(axis=1)
        common = left @ right.T
        kernel: Floats = _COMMON * np.outer(a, b) + common
        kernel += strengths.pairs * common * (common - 1) / 2
        kernel += _COMMON_PAIR * strengths.pairs * np.outer(a * (a - 1) / 2, b * (b - 1) / 2)
        if strengths.neighbours:
            for distance in range(1, min(REACH, self.n_players - 1) + 1):
                runs = (left[:, :-distance] * left[:, distance:]) @ (right[:, :-distance] * right[:, distance:]).T
                kernel += strengths.neighbours / distance * runs
        return kernel

    def _most_likely(self) -> _Strengths:
        """The strengths of highest marginal likelihood, each with its best common scale."""
        best, found = -np.inf, _Strengths(_PAIRS[0], 0.0, _NOISE[-1])
        spread = 1 / np.sqrt(self._noise)
        target = spread * self._losses
        for pairs, share in itertools.product(_PAIRS, _NEIGHBOURS):
            kernel = self._kernel(self._removed, self._removed, _Strengths(pairs, share, 0.0))
            values, vectors = np.linalg.eigh(spread[:, None] * kernel * spread)
            along = (vectors.T @ target) ** 2
            for noise in _NOISE:
                variances = np.maximum(values, 0.0) + noise
                scale = max(float((along / variances).mean()), np.finfo(np.float64).tiny)
                likelihood = -0.5 * (len(target) * np.log(scale) + np.log(variances).sum())
                if likelihood > best:
                    best, found = likelihood, _Strengths(pairs, share, noise)
        return found
