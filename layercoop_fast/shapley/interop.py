"""Results to and from shapiq (extra `[shapiq]`), whose games are called like ours. Only this file imports shapiq.

shapiq's approximators take our games unchanged: `shapiq.KernelSHAP(n).approximate(budget, game)`. Some of them pass a
single mask, `bool[n]`, which our games answer as one row; `single_masks` lets any other callable do the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Masks
from layercoop_fast.shapley.values import ShapleyValues

if TYPE_CHECKING:
    from shapiq import InteractionValues

# Indices whose entries of order 1 are Shapley values, or estimates of them.
_SHAPLEY_AT_ORDER_1 = ("SV", "SII", "kADD-SHAP")


def single_masks(game: Game) -> Game:
    """The game, which now also takes a single mask `bool[n]` and answers it with one worth, `float64[1]`.

    shapiq's permutation, stratified and Owen samplers (1.4) pass single masks.
    """

    def lifted(masks: Masks) -> Floats:
        return game(np.atleast_2d(masks))

    return lifted


def to_interaction_values(
    values: ShapleyValues,
    *,
    pairs: Floats | None = None,
    index: Literal["SII", "k-SII"] = "k-SII",
    baseline: float = 0.0,
) -> InteractionValues:
    """The values as shapiq's `InteractionValues`: index "SV", or of order 2 where `pairs` are given.

    `pairs` are the Shapley interaction indices of two players, `float64[n, n]` symmetric (the diagonal is not read).
    With index "SII" order 1 holds the Shapley values φ_i; with "k-SII" it holds φ_i − ½ Σ_j I_ij, so that everything
    sums to v(all) − v(none). `baseline` is v(none), which `ShapleyValues` does not hold. Standard errors are lost:
    shapiq has no place for them.

    Raises:
        RequestError: where shapiq is not installed, and for pairs of another shape or not symmetric.
    """
    shapiq = _shapiq()
    n = len(values.values)
    singles = values.values
    scores = {}
    if pairs is not None:
        pairs = np.asarray(pairs, dtype=np.float64)
        if pairs.shape != (n, n) or not np.array_equal(pairs, pairs.T):
            raise RequestError(f"pairs must be a symmetric array [{n}, {n}], not of shape {list(pairs.shape)}")
        if index == "k-SII":
            singles = singles - (pairs.sum(axis=1) - np.diag(pairs)) / 2
        scores = {(i, j): float(pairs[i, j]) for i in range(n) for j in range(i + 1, n)}
    result: InteractionValues = shapiq.InteractionValues(
        {(i,): float(single) for i, single in enumerate(singles)} | scores,
        index="SV" if pairs is None else index,
        max_order=1 if pairs is None else 2,
        min_order=1,
        n_players=n,
        estimated=values.method != "exact",
        estimation_budget=values.n_evaluations,
        baseline_value=float(baseline),
    )
    return result


def from_interaction_values(values: InteractionValues) -> ShapleyValues:
    """The Shapley values, `float64[n]`, that shapiq's `InteractionValues` hold at order 1.

    Their standard errors are unknown (NaN) unless shapiq computed the values exactly.

    Raises:
        RequestError: for an index whose order 1 is something else.
    """
    if values.index not in _SHAPLEY_AT_ORDER_1 or values.min_order > 1:
        wanted = ", ".join(_SHAPLEY_AT_ORDER_1)
        raise RequestError(f"the index {values.index} holds no Shapley values at order 1: give one of {wanted}")
    singles = np.asarray(values.get_n_order_values(1), dtype=np.float64)
    stderr = np.full(len(singles), np.nan if values.estimated else 0.0)
    return ShapleyValues(singles, stderr, int(values.estimation_budget or 0), f"shapiq {values.index}")


def _shapiq() -> Any:
    try:
        import shapiq
    except ImportError as error:
        raise RequestError("converting to shapiq needs the extra: pip install layercoop-fast[shapiq]") from error
    return shapiq
