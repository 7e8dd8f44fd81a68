"""Shapley values of any game by sampling the order in which the players arrive."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of, play, require_finite
from layercoop_fast.shapley.control import Control, check_control, fit_pairwise
from layercoop_fast.shapley.values import Moments, ShapleyValues

# Noise of a control below this share of the marginals is taken as rounding.
_ROUNDING = 1e-12

Orders: TypeAlias = npt.NDArray[np.intp]


def shapley_values(
    game: Game,
    *,
    n_players: int | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
    antithetic: bool = True,
    stratified: bool = False,
    control: Control | Literal["pairwise"] | None = None,
    batch: int = 1 << 13,
    progress: Progress | None = None,
) -> ShapleyValues:
    """Estimate φ_i = E over arrival orders π of v(those before i, and i) − v(those before i), without bias.

    The marginals of an order sum to v(all) − v(none), so the values do too, for every sample. v(none) and v(all) are
    asked once. Orders come in independent *units*, from which `stderr` (`float64[n]`) is computed:

    - plain (`antithetic=False`): one order, n − 1 masks. A game without interactions is exact;
    - `antithetic`: an order and its reverse, 2(n − 1) masks. Interactions of two players cancel, so that a pairwise
      game is exact too;
    - `stratified` (always antithetic): the players lie on a circle in a random arrangement, and the 2n orders go once
      around it from each place in each direction. Every player arrives once in each position in each direction, so the
      size of the coalition adds nothing to the variance, and all 2n orders share the circle's n(n − 1) arcs: n − 1
      masks serve two orders. `n_permutations` must be a multiple of 2n.

    `control` is a game of known values that is subtracted before sampling (see `Control`). Its factor β is the
    regression of v's units on the control's, and each half of the units uses the β of the other half: there is no bias,
    and in large samples a control that does not fit adds nothing to the total variance. "pairwise" fits a pairwise game
    to the sampled worths, again each half for the other. Antithetic units have no interactions of two players left, so
    "pairwise" needs `antithetic=False`. The control's own masks are not counted.

    A call of the game asks about `batch` masks, at least one unit; the answer depends on it by rounding only.

    Raises:
        RequestError: when fewer than two units (with a control, four) or a part of a unit are asked for, since no
            standard error exists then, and when a worth is NaN or infinite.

    Sources: Castro, Gómez and Tejada, 2009; Mitchell et al., 2022 (antithetic orders).

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import shapley_values
        >>> def game(masks):  # antithetic orders make what players do in pairs exact
        ...     return masks @ np.arange(6.0) + 2 * (masks[:, 0] & masks[:, 1])
        >>> found = shapley_values(game, n_players=6, n_permutations=10)
        >>> found.values.round(3).tolist()
        [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    """
    n = n_players_of(game, n_players)
    units: _Units = _Circles(n) if stratified else _Paths(n, antithetic)
    n_units = _count_units(units, n, n_permutations, antithetic, stratified, 2 if control is None else 4)
    if batch < 1:
        raise RequestError(f"batch must be at least 1 mask, not {batch}")
    if isinstance(control, Control):
        check_control(control, n)
    elif control not in (None, "pairwise"):
        raise RequestError(f'control must be a Control or "pairwise", not {control!r}')
    elif control is not None and (antithetic or stratified):
        raise RequestError(
            "antithetic orders cancel what a pairwise control could remove: give antithetic=False with it"
        )

    if n == 1:
        control = None  # nothing is sampled that it could help
    ends = np.array([[False] * n, [True] * n])
    none, all_kept = require_finite(play(game, ends))
    rng = np.random.default_rng(seed)
    units_a_batch = max(1, batch // max(1, units.n_masks))
    moments = Moments(n)
    kept: list[tuple[Orders, Floats]] = []
    done = 0
    while done < n_units:
        n_new = min(units_a_batch, n_units - done)
        orders = rng.permuted(np.tile(np.arange(n), (n_new, 1)), axis=1)
        worths = require_finite(play(game, units.masks(orders)))
        if control is None:
            moments.add(units.marginals(orders, worths, none, all_kept))
        else:
            kept.append((orders, worths))
        done += n_new
        if progress is not None:
            progress("permutations", done * units.n_orders, n_permutations)

    if control is not None:
        orders = np.concatenate([part for part, _ in kept])
        worths = np.concatenate([part for _, part in kept])
        sampled = units.marginals(orders, worths, none, all_kept)
        if isinstance(control, Control):
            low, high = require_finite(play(control.game, ends))
            answers = [
                require_finite(play(control.game, units.masks(orders[start : start + units_a_batch])))
                for start in range(0, n_units, units_a_batch)
            ]
            known = units.marginals(orders, np.concatenate(answers), low, high)
            sampled = _regressed(sampled, known - control.values)
        else:
            sampled = _residuals(units, orders, worths, sampled)
        moments.add(sampled)
    return ShapleyValues(moments.mean, moments.stderr(), n_units * units.n_masks + 2, "permutation")


def _count_units(units: _Units, n: int, n_permutations: int, antithetic: bool, stratified: bool, at_least: int) -> int:
    """Return how many whole units the permutations are; `RequestError` for a part of one, or for too few."""
    n_units, rest = divmod(n_permutations, units.n_orders)
    if rest or n_units < at_least:
        least = at_least * units.n_orders
        wanted = f"at least {least}"
        if stratified:
            wanted = f"a multiple of {2 * n} (twice the players), at least {least}"
        elif antithetic:
            wanted = f"an even number, at least {least} (or antithetic=False)"
        raise RequestError(f"n_permutations must be {wanted}, not {n_permutations}")
    return n_units


class _Units(Protocol):
    """How an arrangement of the players becomes orders, and which masks they ask.

    Attributes:
        n_orders: orders of a unit.
        n_masks: masks of a unit, without none and all.
    """

    n_orders: int
    n_masks: int

    def masks(self, orders: Orders, /) -> Masks:
        """Return the masks of each arrangement (`intp[U, n]`), unit by unit: `bool[U·n_masks, n]`."""

    def marginals(self, orders: Orders, worths: Floats, none: float, all_kept: float, /) -> Floats:
        """Return what each player added, mean over the orders of its unit (`float64[U, n]`), from the masks' worths."""


class _Paths:
    """Units of one order, or of one and its reverse."""

    def __init__(self, n: int, antithetic: bool) -> None:
        self.n_orders = 2 if antithetic else 1
        self.n_masks = self.n_orders * (n - 1)

    def _all_orders(self, orders: Orders) -> Orders:
        n = orders.shape[1]
        return np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, n) if self.n_orders == 2 else orders

    def masks(self, orders: Orders) -> Masks:
        """The coalitions of the first 1..n − 1 arrivals of each order."""
        n = orders.shape[1]
        arrival = np.argsort(self._all_orders(orders), axis=1)  # arrival[p, i]: when player i comes
        masks: Masks = (arrival[:, None, :] < np.arange(1, n)[None, :, None]).reshape(-1, n)
        return masks

    def marginals(self, orders: Orders, worths: Floats, none: float, all_kept: float) -> Floats:
        """The steps of each path, by player."""
        every = self._all_orders(orders)
        n_orders, n = every.shape
        path = np.empty((n_orders, n + 1))
        path[:, 0], path[:, -1] = none, all_kept
        path[:, 1:-1] = worths.reshape(n_orders, n - 1)
        marginals = np.empty((n_orders, n))
        np.put_along_axis(marginals, every, np.diff(path, axis=1), axis=1)
        by_unit: Floats = marginals.reshape(-1, self.n_orders, n).mean(axis=1)
        return by_unit


class _Circles:
    """Units of the 2n orders that go once around a circle of the players.

    Arc (a, l) holds the l places from a on. Clockwise orders step from arc (a, l) to (a, l + 1), and place a + l
    arrives; the others step from (a + 1, l) to (a, l + 1), and place a arrives. Places count modulo n.
    """

    def __init__(self, n: int) -> None:
        self.n_orders = 2 * n
        self.n_masks = n * (n - 1)
        place = np.arange(n)
        # arcs[a, l − 1, p]: whether place p lies on the arc (a, l).
        self._arcs: Masks = ((place - place[:, None]) % n)[:, None, :] < np.arange(1, n)[None, :, None]
        self._clockwise = (place[:, None] - place) % n  # [p, l]: where the arc of l places begins that ends before p

    def masks(self, orders: Orders) -> Masks:
        """Every arc of each circle, from each place and of each length 1..n − 1."""
        n = orders.shape[1]
        place = np.argsort(orders, axis=1)
        arcs = self._arcs.reshape(-1, n)
        return np.moveaxis(arcs[:, place], 1, 0).reshape(-1, n)

    def marginals(self, orders: Orders, worths: Floats, none: float, all_kept: float) -> Floats:
        """Both steps to each arc, by the player that arrives."""
        n_units, n = orders.shape
        arcs = np.empty((n_units, n, n + 1))
        arcs[:, :, 0], arcs[:, :, -1] = none, all_kept
        arcs[:, :, 1:-1] = worths.reshape(n_units, n, n - 1)
        clockwise = np.diff(arcs, axis=2)[:, self._clockwise, np.arange(n)].mean(axis=2)
        other = (arcs[:, :, 1:] - np.roll(arcs, -1, axis=1)[:, :, :-1]).mean(axis=2)
        marginals = np.empty((n_units, n))
        np.put_along_axis(marginals, orders, (clockwise + other) / 2, axis=1)
        return marginals


def _halves(n_units: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Return (these, the others) for the even and the odd units."""
    even, odd = np.arange(0, n_units, 2), np.arange(1, n_units, 2)
    return [(even, odd), (odd, even)]


def _regressed(sampled: Floats, noise: Floats) -> Floats:
    """Return the units less β·noise (all `float64[U, n]`), where the noise has mean zero and β is the other half's."""
    if np.abs(noise).max() <= _ROUNDING * np.abs(sampled).max():
        return sampled  # these units know the control exactly (antithetic and pairwise, say): nothing to subtract
    left: Floats = np.empty_like(sampled)
    for these, others in _halves(len(sampled)):
        centred = noise[others] - noise[others].mean(axis=0)
        # Where the other half drew one order throughout, it tells nothing of β, and 0 is as unbiased as any number.
        varies = np.abs(centred).max() > _ROUNDING * np.abs(noise).max()
        beta = float((centred * sampled[others]).sum() / (centred**2).sum()) if varies else 0.0
        left[these] = sampled[these] - beta * noise[these]
    return left


def _residuals(units: _Units, orders: Orders, worths: Floats, sampled: Floats) -> Floats:
    """Return the units (`float64[U, n]`) less what a game fitted to the other half's worths has by chance in them."""
    n = orders.shape[1]
    by_unit = worths.reshape(len(orders), units.n_masks)
    left = np.empty_like(sampled)
    for these, others in _halves(len(orders)):
        fitted = fit_pairwise(units.masks(orders[others]), by_unit[others].reshape(-1))
        low, high = fitted(np.array([[False] * n, [True] * n]))
        known = units.marginals(orders[these], fitted(units.masks(orders[these])), low, high)
        left[these] = sampled[these] - (known - fitted.shapley())
    return left
