"""Every mask of a game of networks, once: exact averages instead of sampled ones, and the best masks of each size.

csrc/surrogate/enumeration computes the 2ⁿ masks of up to 36 players, a GPU (`kernels/gpu/all_masks.py`) those of up to
44. Both keep sums by size: of all values, of those of the masks with player i, of those with players i and j. Every
index here is a weighted sum of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import check, sound
from layercoop_fast.kernels.memory import gpu_named
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.reference.networks import output, predict_logits_reference, predict_reference
from layercoop_fast.kernels.surrogate import predict_logits
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.shapley.mean_marginals import MeanMarginals, interactions_by_size, marginals_by_size
from layercoop_fast.surrogate.threads import one_thread

if TYPE_CHECKING:
    from layercoop_fast.kernels.gpu.all_masks import AllMasks


class NetworksGame(Protocol):
    """A game made of networks (`PublishedSurrogate`), perhaps on another scale than the worths (`Surrogate`)."""

    @property
    def networks(self) -> Networks:
        """The networks, whose mean is the game."""


@dataclass(frozen=True, eq=False)
class TopMasks:
    """The best masks that keep one number of players, best first; the order of equal scores is not defined.

    Attributes:
        masks: `bool[T, n]`; T is less than the number asked for where there are no more.
        scores: `float64[T]`, the mean over the networks of the value before the output function. A sigmoid would tie at
            0.
        worths: `float64[T]`, the mean over the networks of the value.
    """

    masks: Masks
    scores: Floats
    worths: Floats


@dataclass(frozen=True, eq=False)
class Enumerated(MeanMarginals):
    """Averages of f, the mean over the networks, over all 2ⁿ masks. Indices are methods of `MeanMarginals`.

    Attributes:
        means: `float64[n + 1]`, mean of f over the masks that keep k players.
        variances: `float64[n + 1]`, variance of f over these masks, divided by their number.
        best: the best masks by number of kept players, 0 to n; empty unless `top` was asked for.
        within_budget: the best mask whose costs sum to at most the budget; None if no budget was given.
    """

    means: Floats
    variances: Floats
    best: list[TopMasks]
    within_budget: TopMasks | None


class EnumerationInterrupted(KeyboardInterrupt):
    """Ctrl-C came before the last mask. The error has the progress of the enumeration and the best masks seen.

    There are no averages: masks come in the order of their last players, so those seen are not a random sample.

    Attributes:
        done: number of masks seen.
        total: number of all masks, 2ⁿ.
        counts: `int64[n + 1]`, masks seen by number of kept players; where it is C(n, k), `best[k]` is final.
        best: as `Enumerated.best`, of the masks seen; masks that cannot be among the best of all may be missing.
    """

    def __init__(self, done: int, total: int, counts: npt.NDArray[np.int64], best: list[TopMasks]) -> None:
        super().__init__(f"interrupted after {done:,} of {total:,} masks")
        self.done = done
        self.total = total
        self.counts = counts
        self.best = best


def enumerate_masks(
    game: Networks | NetworksGame,
    *,
    interactions: bool = False,
    top: int = 0,
    costs: Sequence[float] | Floats | None = None,
    budget: float | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Enumerated:
    """Evaluate all 2ⁿ masks of a network or an ensemble of up to 36 players, on all threads.

    A `Surrogate` is enumerated as its networks, on the scale on which they were fitted (`link_game`). Values are
    float32, with errors of some 1e-7 of the terms that they sum; sums of more than 2^18 values are float64. Averages
    were seen to be within 1e-6 of f's range, unless a sigmoid moves by less than 0.05 in all. The best masks are chosen
    and ranked in float64 from a few more candidates.

    Args:
        game: the networks.
        interactions: whether to keep what `sii` and `k_sii` need.
        top: how many of the best masks of each size to keep, up to 10,000 (500 on a GPU).
        costs: `[n]`, in any unit; with `budget`: find the best mask whose kept players cost at most the budget (CPU).
        budget: see `costs`.
        progress: called as `progress("masks", done, 2**n)`, at most some 25 times a second.
        device: "cpu", or "cuda" or "cuda:N" for a GPU, for up to 44 players (the extra `triton`).

    Raises:
        RequestError: for too many players, for costs without a budget or a budget without costs, for numbers that are
            not finite, and when no mask is within the budget.
        EnumerationInterrupted: on Ctrl-C.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import Surrogate, enumerate_masks, stratified_masks
        >>> masks = stratified_masks(5, 200, seed=0, strata=[1, 2, 3, 4])
        >>> surrogate = Surrogate.fit(masks, masks @ np.arange(1.0, 6.0), scale="identity", ensemble=2)
        >>> found = enumerate_masks(surrogate.link_game, top=1)
        >>> found.shapley().round(1).tolist()
        [1.0, 2.0, 3.0, 4.0, 5.0]
        >>> found.best[2].masks.tolist()  # the best mask that keeps two players
        [[False, False, False, True, True]]
    """
    networks = game if isinstance(game, Networks) else game.networks
    n = networks.n_players
    if device != "cpu" and n <= _C.MAX_ENUMERATED and not sound("enumeration", gpu_named(device, "enumeration")):
        device = "cpu"  # the kernel is not right there, which a warning has said
    if device == "cpu" and n > _C.MAX_ENUMERATED:
        raise RequestError(
            f"{n} players have too many masks to go through: at most {_C.MAX_ENUMERATED}; use shapley_values"
        )
    if not 0 <= top <= _MOST_TOP:
        raise RequestError(f"top must be 0 to {_MOST_TOP} masks of each size, not {top}")
    prices = _checked_costs(costs, budget, n)
    if prices is not None and budget is not None and np.minimum(prices, 0).sum() > budget:
        raise RequestError(f"no mask is within the budget of {budget:g}: the cheapest costs {_cheapest(prices):g}")

    shifts = _typical_values(networks)
    wanted = top + _SPARE if top else 0
    core: _C.Enumeration | AllMasks
    if device == "cpu":
        core = _C.Enumeration(networks, shifts, pairs=interactions, top=wanted, costs=prices, budget=budget or 0.0)
    else:
        core = _on_device(networks, shifts, device, interactions, wanted, prices)
    step = _STEP if device == "cpu" else 1
    try:
        while core.n_done < core.n_tasks:
            core.run(step)
            if progress is not None:
                progress("masks", core.n_done * 2**n // core.n_tasks, 2**n)
    except KeyboardInterrupt:
        best = [_best(networks, *core.best(size), top) for size in range(n + 1)] if top else []
        counts = core.counts
        raise EnumerationInterrupted(int(counts.sum()), 2**n, counts, best) from None

    sums = _Sums(core.sizes, core.squares, core.players, core.pairs)
    _redo_small_sizes(networks, shifts, sums)
    means = sums.sizes / core.counts
    within = None
    if prices is not None:
        if core.affordable is None:  # within the budget by less than rounding: sums in another order disagree
            raise RequestError(f"no mask is within the budget of {budget:g}: the cheapest costs {_cheapest(prices):g}")
        mask, score = core.affordable
        within = _best(networks, np.array([mask], dtype=np.uint64), np.array([score], dtype=np.float32), 1)
    return Enumerated(
        by_size=marginals_by_size(shifts, sums.sizes, sums.players),
        pairs_by_size=None
        if sums.pairs is None
        else interactions_by_size(shifts, sums.sizes, sums.players, sums.pairs),
        means=shifts + means,
        variances=np.maximum(sums.squares / core.counts - means**2, 0),
        best=[_best(networks, *core.best(size), top) for size in range(n + 1)] if top else [],
        within_budget=within,
    )


def _on_device(
    networks: Networks, shifts: Floats, device: str, pairs: bool, top: int, prices: Floats | None
) -> AllMasks:
    """The enumeration on a GPU; `RequestError` where it is not possible."""
    if prices is not None:
        raise RequestError("costs and budget work on the CPU alone: leave out either them or the device")
    if top > _MOST_TOP_ON_DEVICE + _SPARE:
        raise RequestError(f"top must be 0 to {_MOST_TOP_ON_DEVICE} masks of each size on a GPU, not {top - _SPARE}")
    there = gpu_named(device, "enumeration")
    if (problem := check("enumeration", there).problem) is not None:
        raise RequestError(
            f"{networks.n_players} players are too many for the CPU (at most {_C.MAX_ENUMERATED}), and on {device} the "
            f"kernel that goes through all masks is not right: {problem}; use shapley_values"
        )
    from layercoop_fast.kernels.gpu.all_masks import AllMasks

    return AllMasks(networks, shifts, device=there, pairs=pairs, top=top)


# Steps of the core between two checks for signals: 2^24 masks, some 0.05 s of a small network on two processor cores.
_STEP = 64

# A beam this wide takes some 10 MB a step, and its masks a second or so.
_MOST_TOP = 10_000
_MOST_TOP_ON_DEVICE = 500

# Additional candidates, so that float32 rounding at the border does not decide which masks are among the `top`.
_SPARE = 28

# Masks drawn of each size to estimate their mean value.
_DRAWN = 64


@dataclass
class _Sums:
    """Sums of f(m) − shifts[size of m] by size, as `_C.Enumeration` names them."""

    sizes: Floats
    squares: Floats
    players: Floats
    pairs: Floats | None


@one_thread()
def _redo_small_sizes(networks: Networks, shifts: Floats, sums: _Sums) -> None:
    """Replace the sums of sizes with so few masks that errors of float32 do not average out by sums in float64.

    These sizes keep 0 to 2 players, or all but 0 to 2: there an interaction of two players is made of single masks.
    """
    n = networks.n_players
    for size in {k for end in range(3) for k in (end, n - end) if 0 <= k <= n}:
        # The smaller of the two sides of a mask is listed: the players kept, or those removed.
        few = min(size, n - size)
        listed = np.array(list(combinations(range(n), few)), dtype=np.intp).reshape(comb(n, few), few)
        masks = np.full((len(listed), n), size > few)
        np.put_along_axis(masks, listed, size == few, axis=1)
        values = predict_reference(networks, masks).mean(axis=1) - shifts[size]
        sums.sizes[size] = values.sum()
        sums.squares[size] = (values**2).sum()
        sums.players[:, size] = values @ masks
        if sums.pairs is not None:
            sums.pairs[:, :, size] = (masks * values[:, None]).T @ masks


@one_thread()
def _typical_values(networks: Networks) -> Floats:
    """Return a rough mean value of each size, `float64[n + 1]`: sums of differences from it keep their digits."""
    n = networks.n_players
    rng = np.random.default_rng(0)
    order = rng.random((_DRAWN, n)).argsort(axis=1)
    masks = order[None, :, :] < np.arange(n + 1)[:, None, None]
    values = output(networks, predict_logits(networks, masks.reshape(-1, n))).mean(axis=1)
    typical: Floats = values.reshape(n + 1, _DRAWN).mean(axis=1)
    return typical


@one_thread()
def _best(networks: Networks, packed: npt.NDArray[np.uint64], scores: npt.NDArray[np.float32], top: int) -> TopMasks:
    """Rank the core's candidates in float64 and keep `top`; its own float32 `scores` only chose them."""
    masks = _C.unpack_masks(np.ascontiguousarray(packed[:, None]), networks.n_players)
    logits = predict_logits_reference(networks, masks)
    exact = logits.mean(axis=1)
    order = np.argsort(-exact, kind="stable")[:top]
    return TopMasks(masks[order], exact[order], output(networks, logits[order]).mean(axis=1))


def _checked_costs(costs: Sequence[float] | Floats | None, budget: float | None, n: int) -> Floats | None:
    if (costs is None) != (budget is None):
        raise RequestError("costs and budget belong together: give both or neither")
    if costs is None or budget is None:
        return None
    try:
        prices = np.ascontiguousarray(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"costs must be one number a player: {error}") from error
    if prices.shape != (n,):
        raise RequestError(f"costs must be one number a player, [{n}], not of shape {list(prices.shape)}")
    if not np.isfinite(prices).all() or not np.isfinite(budget):
        raise RequestError("costs and budget must be finite numbers")
    return prices


def _cheapest(prices: Floats) -> float:
    return float(np.minimum(prices, 0).sum())
