"""How far a fit can be trusted: figures from pairs that it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercoop_fast.masks.types import Floats, Masks


@dataclass(frozen=True)
class Report:
    """A fit judged on pairs, on the scale of the fit (usually the logarithm of worths).

    Attributes:
        n_pairs: number of pairs.
        r2: R²; NaN without two distinct worths.
        kendall: By number of kept players: Kendall's τ-b of worths and predictions; NaN without two distinct of each.
        coverage: Share of errors within 1 and within 2 standard deviations of the ensemble. A calibrated normal spread
            has 0.68 and 0.95; less means that the spread is too small. NaN without pairs, and for an ensemble of one.
    """

    n_pairs: int
    r2: float
    kendall: dict[int, float]
    coverage: tuple[float, float]


@dataclass(frozen=True)
class Quality:
    """What a fit reports of itself, from masks that were held out of it.

    Held-out pairs are few, so each figure is an estimate: R² of 60 pairs near 0.9 is good to about ±0.03.

    Attributes:
        inside: On masks held out inside the training strata. Without enough pairs to hold any out it is about none: all
            NaN.
        outside: By number of kept players: R² on that whole stratum by a network that saw none of it. It is around the
            stratum's own mean, so that a level missed counts; negative is worse than knowing that mean.
        linear: R² of the linear ridge fitted and judged on the same pairs as `inside`.
        pairwise: R² of the pairwise ridge, likewise; NaN beyond 45 players, where it would take longer than the fit.
        epochs: Epochs after which held-out error was least: how long the ensemble was trained. 0 is the ridge it starts
            from.
        history: (epoch, mean squared error inside, the same outside), both relative to those of epoch 0.
    """

    inside: Report
    outside: dict[int, float]
    linear: float
    pairwise: float
    epochs: int
    history: list[tuple[int, float, float]] = field(default_factory=list, repr=False)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Quality:
        """Rebuild from the JSON of `dataclasses.asdict`, in which keys have become text and tuples lists."""
        inside = fields["inside"]
        kendall = {int(k): tau for k, tau in inside["kendall"].items()}
        return cls(
            Report(inside["n_pairs"], inside["r2"], kendall, (inside["coverage"][0], inside["coverage"][1])),
            {int(k): r2 for k, r2 in fields["outside"].items()},
            fields["linear"],
            fields["pairwise"],
            fields["epochs"],
            [(epoch, inner, outer) for epoch, inner, outer in fields["history"]],
        )


def report(masks: Masks, truth: Floats, each: Floats) -> Report:
    """Judge the predictions `float64[M, E]` of E networks for masks `bool[M, n]` against the truth `float64[M]`."""
    mean = each.mean(axis=1)
    spread = each.std(axis=1, ddof=1) if each.shape[1] > 1 else np.full(len(each), np.nan)
    return Report(
        len(truth), r_squared(truth, mean), kendall_by_stratum(masks, truth, mean), coverage(truth - mean, spread)
    )


def r_squared(truth: Floats, predicted: Floats) -> float:
    """R² = 1 − Σ (truth − predicted)² / Σ (truth − mean truth)² of two `float64[M]`; NaN without two distinct truths.

    1 is perfect, 0 is no better than the mean truth, negative is worse.
    """
    if len(truth) == 0 or truth.min() == truth.max():
        return math.nan
    return 1 - float(((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def kendall_tau(a: Floats, b: Floats) -> float:
    """Kendall's τ-b of two `float64[M]`: concordant minus discordant pairs, with a scale that leaves out ties.

    τ_b = Σ_{i<j} sgn(a_i − a_j) sgn(b_i − b_j) / √(pairs untied in a · pairs untied in b); NaN where either has none.
    O(M²) time and O(M) memory, for the few thousand masks of a stratum at most. Source: Kendall, 1945.
    """
    agreement = untied_a = untied_b = 0.0
    for i in range(1, len(a)):
        sign_a, sign_b = np.sign(a[:i] - a[i]), np.sign(b[:i] - b[i])
        agreement += float(sign_a @ sign_b)
        untied_a += float(sign_a @ sign_a)
        untied_b += float(sign_b @ sign_b)
    scale = math.sqrt(untied_a * untied_b)
    return agreement / scale if scale else math.nan


def kendall_by_stratum(masks: Masks, truth: Floats, predicted: Floats) -> dict[int, float]:
    """`kendall_tau` of two `float64[M]` among the masks `bool[M, n]` of each number of kept players, ascending."""
    kept = masks.sum(axis=1)
    return {int(k): kendall_tau(truth[kept == k], predicted[kept == k]) for k in np.unique(kept)}


def coverage(error: Floats, spread: Floats) -> tuple[float, float]:
    """The shares of errors `float64[M]` within one and within two spreads `float64[M]`; NaN where there are none."""
    if len(error) == 0 or np.isnan(spread).any():
        return math.nan, math.nan
    one, two = (float((np.abs(error) <= k * spread).mean()) for k in (1, 2))
    return one, two
