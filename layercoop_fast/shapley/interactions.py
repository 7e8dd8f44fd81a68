"""Interactions of three and of five players, as regression features that do not change the Shapley values.

With x_i = 1 where player i is kept and −1 where not, every game is a sum over sets T of c_T Π_{i ∈ T} x_i. The Shapley
values of such a term are 0 where |T| is even, and 2 c_T / |T| for each member where it is odd. Hence

    e_T(S) = Π_{i ∈ T} x_i − (1 / |T|) Σ_{i ∈ T} x_i,    |T| odd,

is a game whose Shapley values are all zero: what a regression attributes to it reduces the noise and changes nothing
else. There are far too many sets T to list, but a ridge regression needs only their inner products,

    k_d(S, S') = Σ_{|T| = d} e_T(S) e_T(S') / C(n, d),

which depend on |S|, |S'| and |S ∩ S'| only, in closed form by Krawtchouk polynomials: a table of (n + 1)³ numbers.
"""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

from layercoop_fast.masks.types import Floats, Masks

DEGREES = (3, 5)
# Candidates: the weight of degree 5 relative to degree 3; the variance of interactions relative to the noise.
_MIXTURES = (1.0, 0.25, 0.06)
_STRENGTHS = tuple(10.0**power for power in range(-1, 5))
# Rows used to choose the mixture, and rows whose kernel columns make up the features. The ridge is chosen on as many as
# the latter: where rows come close to all sets, too weak a ridge fits higher degrees, and fewer rows would hide that.
_JUDGED, _CENTRES = 400, 1024
# Added to the diagonal before it is factored, relative to it.
_JITTER = 1e-6


def interaction_kernel(n: int, degree: int) -> Floats:
    """k_d as a table `float64[n + 1, n + 1, n + 1]` by |S|, |S'| and |S ∩ S'|; impossible entries mean nothing.

    `degree` is odd and at least 3; a degree above n has no sets, so its table is zero.
    """
    if degree > n:
        return np.zeros((n + 1,) * 3)
    size, other, shared = np.ogrid[: n + 1, : n + 1, : n + 1]
    apart = np.clip(size + other - 2 * shared, 0, n)  # the players in one and not in the other
    agreement = n - 2 * apart  # Σ x_i x'_i
    # Σ_T Π x_i Π x'_i: the elementary symmetric polynomial of n signs, of which `apart` are negative.
    both = _signs(n, degree)[apart]
    # Σ_T Π x_i Σ_{i ∈ T} x'_i, where player i leaves the degree − 1 others to n − 1 signs.
    rest = _signs(n - 1, degree - 1)
    within, outside = rest[np.clip(n - np.arange(n + 1), 0, n - 1)], rest[np.clip(n - 1 - np.arange(n + 1), 0, n - 1)]

    def mixed(a: Floats, b: Floats) -> Floats:
        """`a` the size of the set multiplied over, `b` that of the one summed over."""
        result: Floats = within[a] * (2 * shared - a) + outside[a] * (n - a - 2 * (b - shared))
        return result

    # Σ_T Σ_{i ∈ T} x_i Σ_{j ∈ T} x'_j, by pairs i = j and i ≠ j.
    sums = agreement * comb(n - 1, degree - 1)
    sums = sums + ((2 * size - n) * (2 * other - n) - agreement) * comb(n - 2, degree - 2)
    table: Floats = both - (mixed(size, other) + mixed(other, size)) / degree + sums / degree**2
    return table / comb(n, degree)


def _signs(n: int, degree: int) -> Floats:
    """Return e_degree of n signs by how many of them are negative, `float64[n + 1]` (Krawtchouk polynomials)."""
    return np.array(
        [
            sum((-1) ** j * comb(negative, j) * comb(n - negative, degree - j) for j in range(degree + 1))
            for negative in range(n + 1)
        ],
        dtype=np.float64,
    )


def _between(table: Floats, masks: Masks, others: Masks) -> Floats:
    """Return the kernel of each of `masks` with each of `others`, `float64[K, C]`."""
    shared = np.rint(masks.astype(np.float32) @ others.T.astype(np.float32)).astype(np.intp)
    sizes, other_sizes = masks.sum(axis=1), others.sum(axis=1)
    width = len(table)
    answers: Floats = table.reshape(-1)[(sizes[:, None] * width + other_sizes) * width + shared]
    return answers


def interaction_features(masks: Masks, fixed: Floats, target: Floats, weights: Floats, seed: int) -> Floats:
    """Features `float64[K, C]` for a ridge of 1, with C = min(K, 1024), or C = 0 for fewer than 3 players.

    `masks` `bool[K, n]` are the rows of the regression, `fixed` `float64[K, F]` its columns without a ridge, `target`
    `float64[K]`, `weights` `float64[K]` of mean 1. The mixture of degrees is chosen by the leave-one-out error of up
    to 400 rows, then the ridge by that of up to 1024 rows.
    """
    n = masks.shape[1]
    if n < DEGREES[0]:
        return np.empty((len(masks), 0))
    first, second = (interaction_kernel(n, degree) for degree in DEGREES)
    shuffled = np.random.default_rng([seed, len(masks)]).permutation(len(masks))

    def judge(table: Floats, rows: npt.NDArray[np.intp]) -> tuple[float, float]:
        kernel = _between(table, masks[rows], masks[rows])
        return _best_strength(kernel, fixed[rows], target[rows], weights[rows])

    mixed = [first + mixture * second for mixture in _MIXTURES]
    judged = [judge(table, shuffled[:_JUDGED]) for table in mixed]
    best = min(range(len(mixed)), key=lambda one: judged[one])
    strength = judged[best][1]
    if len(masks) > _JUDGED:
        strength = judge(mixed[best], shuffled[:_CENTRES])[1]

    centres = masks[shuffled[:_CENTRES]]
    square = strength * _between(mixed[best], centres, centres)
    square[np.diag_indices_from(square)] += _JITTER * np.trace(square) / len(square)
    columns = strength * _between(mixed[best], centres, masks)
    features: Floats = np.linalg.solve(np.linalg.cholesky(square), columns).T
    return features


def _best_strength(kernel: Floats, fixed: Floats, target: Floats, weights: Floats) -> tuple[float, float]:
    """Return the least weighted squared error of rows left out one by one, and the factor of `kernel` that has it.

    One eigenvalue problem serves all factors. A row left out errs by its residual / (1 − its leverage).
    """
    root = np.sqrt(weights)
    basis = _range(root[:, None] * fixed)
    wanted = root * target
    wanted = wanted - basis @ (basis.T @ wanted)
    level = float(np.trace(kernel)) / len(kernel)
    kernel = root[:, None] * kernel * (root / level)
    kernel -= basis @ (basis.T @ kernel)
    kernel -= (kernel @ basis) @ basis.T
    values, vectors = np.linalg.eigh(kernel)
    errors = []
    for strength in _STRENGTHS:
        kept = strength * np.maximum(values, 0)
        kept = kept / (1 + kept)
        residual = wanted - vectors @ (kept * (vectors.T @ wanted))
        leverage = (basis**2).sum(axis=1) + vectors**2 @ kept
        errors.append((float(((residual / np.maximum(1 - leverage, _JITTER)) ** 2).sum()), strength / level))
    return min(errors)


def _range(columns: Floats) -> Floats:
    """Return an orthonormal basis of what the columns span."""
    vectors, values, _ = np.linalg.svd(columns, full_matrices=False)
    basis: Floats = vectors[:, values > 1e-9 * values[0]]
    return basis
