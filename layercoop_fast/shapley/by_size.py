"""What players are worth at the sizes of masks that are already measured, with standard errors by clusters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Masks, require_finite
from layercoop_fast.shapley.values import ShapleyValues
from layercoop_fast.surrogate.pairs import check_pairs

_ROUNDING = 1e-10


def size_values(masks: Masks, worths: Floats, *, clusters: npt.NDArray[np.int64] | None = None) -> ShapleyValues:
    """What each player adds at the sizes of masks `bool[M, n]` with worths `float64[M]`; all sizes have equal weight.

    At size k the contribution of player i is that of the linear function nearest to v over all masks of k players,

        u_i(k) = (n − 1)/n · (mean of v over those with i − mean of v over those without i),

    the gain of keeping i rather than another player. The values are the mean of u over the sizes 1..n − 1 that occur;
    they sum to 0. Where all of these sizes and both ends (none and all players) occur, the Shapley values are
    φ_i = (v(all) − v(none)) / n + u_i, and these are returned instead.

    Each row has the weight 1 / (rows of its size · k (n − k)), so that one weighted least-squares fit with a constant
    for each size gives the mean. It is consistent where the rows of each size are uniform, dependent or not; `worths`
    need not be nearly linear.

    `stderr` is the cluster jackknife: the root of the sum of squares of the changes of the values when all rows of one
    cluster are left out at once, with weights unchanged. `clusters` `int64[M]` are those of a `Sample`; without them
    every row is a cluster. Sources: Charnes et al., 1988 (values as least squares); Bell and McCaffrey, 2002 (CR3).

    Raises:
        RequestError: for arrays that do not fit together, worths that are not finite, and masks too few to tell the
            players apart.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import get_sampler, size_values
        >>> sample = get_sampler("two-stage")(4, 40, seed=0, strata=[3, 2])
        >>> worths = sample.masks @ np.array([0.1, 0.2, 0.3, 0.4])
        >>> found = size_values(sample.masks, worths, clusters=sample.clusters)
        >>> found.values.round(3).tolist()  # they sum to 0: keeping a player rather than another
        [-0.15, -0.05, 0.05, 0.15]
    """
    masks, worths = check_pairs(masks, worths)
    require_finite(worths)
    n = masks.shape[1]
    clusters = np.arange(len(masks)) if clusters is None else np.asarray(clusters)
    if clusters.shape != (len(masks),):
        raise RequestError(f"{len(masks)} masks need clusters of shape [{len(masks)}], not {list(clusters.shape)}")
    kept = masks.sum(axis=1)
    between = (kept > 0) & (kept < n)
    ends = [worths[kept == size] for size in (0, n)]
    rows, sizes, target = masks[between].astype(np.float64), kept[between], worths[between].copy()
    groups = np.unique(clusters[between], return_inverse=True)[1]
    weights = np.empty(len(rows))
    distinct = np.unique(sizes)
    for size in distinct:
        of_size = sizes == size
        # The covariance of uniform masks of this size is k (n − k) / (n (n − 1)) times a matrix common to all sizes.
        weights[of_size] = n * (n - 1) / (size * (n - size) * of_size.sum() * len(distinct))
        rows[of_size] -= rows[of_size].mean(axis=0)
        target[of_size] -= target[of_size].mean()
    values, inverse = _solve(rows, weights, target)
    residual = target - rows @ values
    scores = _left_out(rows, weights, residual, inverse, groups, sizes)
    method = "fixed_size"
    if len(distinct) == n - 1 and all(len(end) for end in ends):
        values = values + (ends[1].mean() - ends[0].mean()) / n
        method = "shapley_by_size"
    stderr = np.sqrt((scores**2).sum(axis=0))
    return ShapleyValues(values, stderr, len(masks), method)


def _solve(rows: Floats, weights: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Return the values `float64[n]` that sum to 0 and the inverse of XᵀWX on that space, `float64[n, n]`."""
    n = rows.shape[1]
    eigenvalues, vectors = np.linalg.eigh(rows.T @ (weights[:, None] * rows))
    # Centred rows sum to 0, so the least eigenvalue is 0 and its vector the constant.
    if len(rows) <= n or eigenvalues[1] <= _ROUNDING * eigenvalues[-1]:
        raise RequestError(f"{len(rows)} masks between none and all do not tell {n} players apart: measure more")
    inverse: Floats = (vectors[:, 1:] / eigenvalues[1:]) @ vectors[:, 1:].T
    return inverse @ (rows.T @ (weights * target)), inverse


def _left_out(
    rows: Floats,
    weights: Floats,
    residual: Floats,
    inverse: Floats,
    groups: npt.NDArray[np.intp],
    sizes: npt.NDArray[np.intp],
) -> Floats:
    """Return the change of the values without each cluster, `float64[G, n]`: (XᵀWX)⁻¹ X_gᵀ W_g (1 − H_gg)⁻¹ e_g.

    The hat matrix H includes the constants of the sizes: a row is 1 / (rows of its size) of its own constant.
    """
    influence = weights[:, None] * (rows @ inverse)  # [M, n]
    of_size = np.bincount(sizes)
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    starts = np.cumsum(counts) - counts
    scores = np.empty((len(counts), rows.shape[1]))
    for count in np.unique(counts):  # all clusters of as many rows at once, `[g, count]`
        alike = np.flatnonzero(counts == count)
        members = order[starts[alike][:, None] + np.arange(count)]
        size = sizes[members]
        left = np.eye(count) - rows[members] @ influence[members].transpose(0, 2, 1)
        left -= (size[:, :, None] == size[:, None, :]) / of_size[size][:, None, :]
        # Where only this cluster tells some players apart nothing is left to judge it by: that part is left out.
        freed = np.linalg.pinv(left, rcond=_ROUNDING) @ residual[members][:, :, None]
        scores[alike] = (influence[members] * freed).sum(axis=1)
    return scores
