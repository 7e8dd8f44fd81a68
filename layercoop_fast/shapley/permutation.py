"""Shapley values of any game by sampling the order in which the players arrive."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.game.protocol import Floats, Game, Masks, Progress, n_players_of, play, require_finite
from layercoop_fast.shapley.values import Moments, ShapleyValues


def shapley_values(
    game: Game,
    *,
    n_players: int | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
    antithetic: bool = True,
    batch: int = 1 << 13,
    progress: Progress | None = None,
) -> ShapleyValues:
    """Estimate φ_i = E over arrival orders π of v(those before i, and i) − v(those before i), without bias.

    Every order telescopes from no player to all, so the values sum to v(all) − v(none) whatever the sample. With
    `antithetic` orders come in pairs, one and its reverse, which cancels much of the variance; a pair is then the
    independent unit that `stderr` (`float64[n]`) counts. v(none) and v(all) are asked once, so that
    `n_permutations`·(n − 1) + 2 masks are asked in all, some `batch` masks a call; the answer does not depend on it
    beyond rounding.

    Raises `RequestError` when fewer than two independent units (or, with `antithetic`, an odd number of orders) are
    asked for, since no standard error exists then, and when a worth is NaN or infinite.
    Sources: Castro, Gómez and Tejada, 2009; Mitchell et al., 2022 (antithetic orders).
    """
    n = n_players_of(game, n_players)
    per_unit = 2 if antithetic else 1
    if n_permutations < 2 * per_unit or n_permutations % per_unit:
        wanted = "an even number, at least 4 (or antithetic=False)" if antithetic else "at least 2"
        raise RequestError(f"n_permutations must be {wanted}, not {n_permutations}")
    if batch < 1:
        raise RequestError(f"batch must be at least 1 mask, not {batch}")

    none, all_kept = require_finite(play(game, np.array([[False] * n, [True] * n])))
    rng = np.random.default_rng(seed)
    n_units = n_permutations // per_unit
    units_a_batch = max(1, batch // (per_unit * max(1, n - 1)))
    moments = Moments(n)
    while moments.count < n_units:
        n_new = min(units_a_batch, n_units - moments.count)
        orders = rng.permuted(np.tile(np.arange(n), (n_new, 1)), axis=1)
        if antithetic:
            orders = np.concatenate([orders, orders[:, ::-1]])
        worths = require_finite(play(game, _prefixes(orders)))
        marginals = _marginals(orders, worths, none, all_kept)
        moments.add(marginals.reshape(per_unit, n_new, n).mean(axis=0))
        if progress is not None:
            progress("permutations", moments.count * per_unit, n_permutations)
    return ShapleyValues(moments.mean, moments.stderr(), n_permutations * (n - 1) + 2, "permutation")


def _prefixes(orders: npt.NDArray[np.intp]) -> Masks:
    """Return the coalitions of the first 1..n−1 arrivals of each order, `bool[P·(n − 1), n]`, order by order."""
    n = orders.shape[1]
    arrival = np.argsort(orders, axis=1)  # arrival[p, i]: when player i comes
    return (arrival[:, None, :] < np.arange(1, n)[None, :, None]).reshape(-1, n)


def _marginals(orders: npt.NDArray[np.intp], worths: Floats, none: float, all_kept: float) -> Floats:
    """Return what each player added on arrival, `float64[P, n]` by player, from the worths of `_prefixes`."""
    n_orders, n = orders.shape
    path = np.empty((n_orders, n + 1))
    path[:, 0], path[:, -1] = none, all_kept
    path[:, 1:-1] = worths.reshape(n_orders, n - 1)
    marginals = np.empty((n_orders, n))
    np.put_along_axis(marginals, orders, np.diff(path, axis=1), axis=1)
    return marginals
