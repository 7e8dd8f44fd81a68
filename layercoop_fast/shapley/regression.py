"""Shapley values of any game as the solution of a weighted least-squares problem: KernelSHAP and LeverageSHAP."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of, play, require_finite
from layercoop_fast.shapley.control import Control, check_control
from layercoop_fast.shapley.interactions import interaction_features
from layercoop_fast.shapley.values import ShapleyValues

# A stratum with at most this many members a draw is listed and drawn from; a larger one is drawn until distinct.
_LISTED = 4
# Samples drawn in the hope of full rank.
_ATTEMPTS = 100
# Relative size below which an eigenvalue, or what a control leaves, counts as zero.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class _Stratum:
    """The coalitions of one size; of each pair of complements only one.

    Attributes:
        members: C(n, size), or half of it where a size is its own complement's.
        n_sizes: Sizes it stands for: 2 where the complements are of another size, else 1.
        mass: Sum of the Shapley kernel over all members and their complements.
    """

    size: int
    members: int
    n_sizes: int
    mass: float


def kernel_shap(
    game: Game,
    *,
    n_players: int | None = None,
    budget: int,
    seed: int = 0,
    sampling: Literal["leverage", "kernel"] = "leverage",
    interactions: bool = True,
    control: Control | None = None,
    batch: int = 1 << 13,
    progress: Progress | None = None,
) -> ShapleyValues:
    """Estimate the Shapley values by least squares over sampled coalitions, within `budget` masks.

    The values φ are the one minimiser of Σ_S μ(S)·(v(S) − v(none) − Σ_{i ∈ S} φ_i)² with Σ φ_i = v(all) − v(none) and
    the Shapley kernel μ(S) = (n − 1) / (C(n, s)·s·(n − s)), s = |S|. Coalitions are sampled by size:

    - "leverage": every size alike, which is the leverage score 1 / C(n, s) of each coalition's row;
    - "kernel": size s in proportion to its kernel mass 1 / (s·(n − s)), as KernelSHAP.

    Every coalition comes with its complement. Interactions of two players then cancel, so that a pairwise game is
    exact. Each size gets its share of the budget, at least two pairs. A size whose share covers it is asked whole; from
    the others coalitions are drawn without replacement. A budget of 2^n asks everything and gives the exact values.

    With `interactions` a ridge regression on interactions of three and five players removes part of the noise, where
    leaving rows out shows that it can (see `shapley.interactions`). Its features have Shapley values of zero, so that
    all of the above still holds. But the strength of the ridge depends on the worths, so that the values of a sum of
    games are the sum of their values only up to the sampling error. It costs O(K·c²) more for K pairs and
    c = min(K, 1024).

    The estimate is consistent, not unbiased: the fit divides by sampled second moments, which gives a bias of the order
    1 / budget (none once all coalitions are asked). `control` is one more regressor of the fit, without the part that
    the values explain, so that its factor is the best one in the sample (see `Control`).

    `stderr` is linearised: residuals r_k of the fit, each divided by 1 − its leverage (the jackknife's correction),
    give scores a_k = H⁻¹ x_k w_k r_k, whose variance is summed size by size for sampling without replacement. It is
    zero for sizes that are asked whole, and rough near the least budget. `n_evaluations` is the number of masks asked:
    `budget`, or 1 less, and at most 2^n.

    Raises:
        RequestError: for a budget below the lesser of 4n + 2 and 2^n, and when a worth is NaN or infinite.

    Sources: Lundberg and Lee, 2017; Covert and Lee, 2021 (pairing); Musco and Witter, arXiv 2410.01917 (leverage).

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import kernel_shap
        >>> def game(masks):  # what players do in pairs is exact
        ...     return masks @ np.arange(6.0) + 2 * (masks[:, 0] & masks[:, 1])
        >>> found = kernel_shap(game, n_players=6, budget=40)
        >>> found.values.round(3).tolist()
        [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    """
    n = n_players_of(game, n_players)
    if sampling not in ("leverage", "kernel"):
        raise RequestError(f'sampling must be "leverage" or "kernel", not {sampling!r}')
    if batch < 1:
        raise RequestError(f"batch must be at least 1 mask, not {batch}")
    if control is not None:
        check_control(control, n)
    least = min(4 * n + 2, 2**n)  # twice as many rows as values: less leaves too little for a standard error
    if budget < least:
        raise RequestError(f"budget must be at least {least} masks for {n} players, not {budget}")

    ends = np.array([[False] * n, [True] * n])
    none, all_kept = require_finite(play(game, ends))
    if n == 1:
        return ShapleyValues(np.array([all_kept - none]), np.zeros(1), 2, "kernel_shap")
    strata = _strata(n)
    counts = _allocate(strata, (budget - 2) // 2, sampling)
    masks = _draw_all(n, strata, counts, seed)

    rows = np.concatenate([masks, ~masks])
    target = _target(rows, _ask(game, rows, batch, progress), all_kept - none)
    centred = masks - masks.mean(axis=1, keepdims=True)
    design = centred
    if control is not None:
        low, high = require_finite(play(control.game, ends))
        known = _target(rows, _ask(control.game, rows, batch, None), high - low)
        left_over = known - centred @ control.values
        # A control that is linear in these rows is known to the fit already.
        if np.abs(left_over).max() > _ROUNDING * np.abs(control.values).max():
            design = np.column_stack([centred, left_over * np.sqrt((centred**2).sum() / n / (left_over**2).sum())])
    weights = np.repeat(np.array([one.mass for one in strata]) / counts, counts)
    weights /= weights.mean()
    features = np.empty((len(masks), 0))
    if interactions:
        features = interaction_features(masks, design, target, weights, seed)
    influence, scores = _fit(design, features, target, weights)
    shares = influence[:, :n].T @ target
    stderr = np.sqrt(_variance(scores[:, :n], counts, [one.members for one in strata]))
    return ShapleyValues((all_kept - none) / n + shares, stderr, 2 + len(rows), "kernel_shap")


def _strata(n: int) -> list[_Stratum]:
    """Return the sizes 1..⌊n/2⌋, each standing for its complement's too."""
    strata = []
    for size in range(1, n // 2 + 1):
        halved = 2 * size == n
        n_sizes = 1 if halved else 2
        mass = n_sizes * (n - 1) / (size * (n - size))
        strata.append(_Stratum(size, comb(n, size) // (1 + halved), n_sizes, mass))
    return strata


def _allocate(strata: list[_Stratum], total: int, sampling: str) -> npt.NDArray[np.int64]:
    """Share `total` draws among the strata: in proportion, but at least two each and at most all members.

    The shares are clip(λ·p, 2, members) for the λ that makes them sum to `total`, rounded down; the draws that rounding
    leaves go to the strata that lost most. Strata of fewer than two members get all of them.
    """
    members = np.array([min(one.members, total) for one in strata], dtype=np.float64)
    least = np.minimum(2.0, members)
    share = np.array([one.n_sizes if sampling == "leverage" else one.mass for one in strata], dtype=np.float64)
    if members.sum() <= total:
        return members.astype(np.int64)
    low, high = 0.0, float(total / share.min())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * share, least, members).sum() <= total else (low, middle)
    exact = np.clip(low * share, least, members)
    counts = np.floor(exact + 1e-9)
    lost = np.where(counts < members, exact - counts, -1)
    counts[np.argsort(-lost, kind="stable")[: int(total - counts.sum())]] += 1
    return counts.astype(np.int64)


def _draw_all(n: int, strata: list[_Stratum], counts: npt.NDArray[np.int64], seed: int) -> Masks:
    """Draw the coalitions, stratum by stratum, `bool[K, n]`, and draw again where they do not determine all players.

    Few coalitions can, rarely, have too small a rank for the fit. This is checked before any worth is asked.
    """
    for attempt in range(_ATTEMPTS):
        parts = [_draw(n, *each, [seed, attempt]) for each in zip(strata, counts.tolist(), strict=True)]
        masks = np.concatenate(parts)
        centred = masks - masks.mean(axis=1, keepdims=True)
        values = np.linalg.eigvalsh(centred.T @ centred)
        if values[1] > _ROUNDING * values[-1]:
            return masks
    raise RequestError(
        f"{_ATTEMPTS} samples of {len(masks)} rows did not determine all {n} players: give a larger budget"
    )


def _draw(n: int, stratum: _Stratum, count: int, seed: list[int]) -> Masks:
    """Draw `count` distinct members of the stratum uniformly, `bool[count, n]`; all of them where it has no more.

    Of two complements of equal size the one with player 0 represents both.
    """
    halved = 2 * stratum.size == n
    if stratum.members <= _LISTED * count:
        others = range(1, n) if halved else range(n)
        chosen = np.array(list(combinations(others, stratum.size - halved)), dtype=np.intp)
        masks = np.zeros((len(chosen), n), dtype=np.bool_)
        masks[:, 0] = halved
        np.put_along_axis(masks, chosen, True, axis=1)
        if count < len(masks):
            rng = np.random.default_rng([*seed, stratum.size])
            masks = masks[np.sort(rng.choice(len(masks), count, replace=False))]
        return masks
    masks = np.empty((0, n), dtype=np.bool_)
    attempt = 0
    while len(masks) < count:
        more = stratified_masks(n, count, seed=[*seed, stratum.size, attempt], strata=[stratum.size])
        if halved:
            more ^= ~more[:, :1]
        masks = np.concatenate([masks, more])
        first = np.unique(np.packbits(masks, axis=1), axis=0, return_index=True)[1]
        masks = masks[np.sort(first)]
        attempt += 1
    return masks[:count]


def _ask(game: Game, masks: Masks, batch: int, progress: Progress | None) -> Floats:
    """Return the worths of `masks`, `float64[M]`, by calls with `batch` masks each."""
    worths = np.empty(len(masks))
    for low in range(0, len(masks), batch):
        worths[low : low + batch] = require_finite(play(game, masks[low : low + batch]))
        if progress is not None:
            progress("coalitions", min(low + batch, len(masks)), len(masks))
    return worths


def _target(rows: Masks, worths: Floats, difference: float) -> Floats:
    """Return the target of each pair's centred row, `float64[K]`; the last K of `rows` `bool[2K, n]` are complements.

    With φ_i = Δ/n + u_i, Δ = v(all) − v(none) and Σ u_i = 0, a coalition gives the equation
    Σ_{i ∈ S} u_i = v(S) − v(none) − Δ·s/n, and its complement the same equation for −u: the two are one row, whose
    target is half of their difference.
    """
    half = len(rows) // 2
    sizes = rows[:half].sum(axis=1)
    target: Floats = (worths[:half] - worths[half:] - difference * (2 * sizes / rows.shape[1] - 1)) / 2
    return target


def _fit(design: Floats, features: Floats, target: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Solve min Σ_k w_k (y_k − x_k β − z_k γ)² + |γ|² and return the influence and the scores, `float64[K, F]` each.

    `design` `float64[K, F]` holds the rows x_k: centred coalitions, which sum to zero, so that u ⟂ 1 is the least-norm
    solution, and perhaps a control. `features` `float64[K, C]` are z_k. β is influenceᵀ y; a score is the change of β
    without row k.
    """
    # The features are eliminated: with ZᵀWZ + 1 = L Lᵀ and P = L⁻¹ Zᵀ, rows x̃ = x − Pᵀ (P W X) take their place.
    square = features.T @ (weights[:, None] * features)
    square[np.diag_indices_from(square)] += 1
    projected = np.linalg.solve(np.linalg.cholesky(square), features.T)
    cleared = design - projected.T @ (projected @ (weights[:, None] * design))
    normal = design.T @ (weights[:, None] * cleared)
    values, vectors = np.linalg.eigh(normal)
    if values[1] <= _ROUNDING * values[-1]:
        raise RequestError(f"the control cannot be told from the values by {len(target)} rows: give a larger budget")
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T  # the first is the constant, which no row moves
    influence: Floats = weights[:, None] * (cleared @ inverse)
    residual = target - design @ (influence.T @ target)
    residual -= projected.T @ (projected @ (weights * residual))
    leverage = (influence * cleared).sum(axis=1) + weights * (projected**2).sum(axis=0)
    scores: Floats = influence * (residual / np.maximum(1 - leverage, _ROUNDING))[:, None]
    return influence, scores


def _variance(scores: Floats, counts: npt.NDArray[np.int64], members: list[int]) -> Floats:
    """Return Σ over strata of (1 − m / M)·m·(variance of its m of M scores), `scores` `float64[K, n]` by stratum.

    That is the variance of a sum under sampling without replacement; a stratum asked whole has none.
    """
    variance: Floats = np.zeros(scores.shape[1])
    stops = np.cumsum(counts)
    for start, stop, total in zip(stops - counts, stops, members, strict=True):
        drawn = int(stop - start)
        if drawn < total:
            variance += (1 - drawn / total) * drawn * scores[start:stop].var(axis=0, ddof=1)
    return variance
