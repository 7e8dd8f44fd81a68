"""From measured worths to the Shapley value of each player, with intervals for all sources of error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.types import Floats, Game, Progress
from layercoop_fast.search.best_masks import best_masks
from layercoop_fast.shapley.enumeration import TopMasks, enumerate_masks
from layercoop_fast.shapley.permutation import shapley_values
from layercoop_fast.shapley.values import ShapleyValues
from layercoop_fast.surrogate.pairs import finite_pairs
from layercoop_fast.surrogate.ridge import RidgeSurrogate
from layercoop_fast.surrogate.surrogate import NetworkGame, Surrogate
from layercoop_fast.surrogate.uncertainty import Intervals, intervals, text_bootstrap
from layercoop_fast.texts.domains import Domains

EXACT_UP_TO, EXACT_ON_GPU = 24, 36
"""Number of players up to which all masks of the surrogate are enumerated by default: a few seconds (the one for GPUs
is predicted, not measured)."""
PERMUTATIONS = 2_000

# Limits of branch and bound for each size on the pairwise ridge: where they do not suffice, more time rarely helps.
_NODES, _SECONDS = 2_000, 1.0
# Utilities whose worth, on the scale of the fit, is the mean over the windows of a negative NLL (plus a constant).
_MEANS_OF_WINDOWS = ("ppl_ratio", "nll")
_MOST_ON_GPU = 44  # most players whose masks a GPU enumerates
_MOST_PAIRED = 64  # with more players the bootstrap of the text fits no pairs, which would take minutes


@dataclass(frozen=True, eq=False)
class Valuation:
    """The result of `value_players`. All values are on the scale of the fit: usually nats of log worth.

    Attributes:
        players: a name for each player, as `Worths.player_names`.
        surrogate: that the values are computed on.
        method: "exact" (every mask of the surrogate) or "permutation".
        intervals: the values with their errors.
        n_dropped: pairs left out because their worth is not finite.
        text_counts: whether the choice of text is one of the sources of error; not where the worth is not a mean over
            windows.
        interactions: float64 [n, n], Shapley interaction index of every pair, where requested.
        best: the best masks by number of kept players, 0 to n, where requested; `worths` are on the scale of the fit.
        pairs_from: the game of the last two: the "surrogate", enumerated, or a "pairwise ridge" for too many players.
    """

    players: list[str]
    surrogate: Surrogate
    method: str
    intervals: Intervals
    n_dropped: int
    text_counts: bool
    interactions: Floats | None
    best: list[TopMasks]
    pairs_from: str


def value_players(
    measured: Worths,
    *,
    clusters: npt.NDArray[np.int64] | None = None,
    permutations: int | None = None,
    seed: int = 0,
    interactions: bool = False,
    best: int = 0,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Valuation:
    """Fit a `Surrogate` to measured worths, and compute Shapley values on it with `Intervals`.

    Up to 24 players every mask of the surrogate is enumerated, which leaves no sampling error. With more players, or
    where `permutations` is given, random permutations are sampled. Interactions and best masks are enumerated up to 36
    players; with more, they are those of a pairwise ridge fitted to the same worths: its coefficients, and the masks
    that `best_masks` finds (proven where its bound closes). A GPU enumerates up to 36 players by default, and up to 44
    for interactions and best masks.

    The intervals cover the choice of masks, from the spread over the surrogate's networks, and the choice of text, from
    resampled windows (`text_bootstrap`); the latter is left out for worths that are not a mean over windows, and for a
    single window.

    Args:
        measured: M masks of n players and their worths.
        clusters: int64 [M], equal for masks that were drawn together, as in a `Sample`; by default each counts as drawn
            alone.
        permutations: number of permutations to sample, 2,000 by default where they are needed.
        seed: of everything random.
        interactions: compute the Shapley interaction index of every pair.
        best: number of best masks of each size.
        progress: called with (stage, done, total).
        device: "cuda" enumerates on a GPU (needs the extra `triton`).

    Raises `RequestError` where no worth is finite, and for interactions of more players than a pairwise ridge takes
    (about 140).
    """
    n = measured.masks.shape[1]
    masks, worths, n_dropped = finite_pairs(measured.masks, measured.worths)
    if len(worths) == 0:
        raise RequestError(f"none of {n_dropped} worths is finite: nothing to fit a surrogate to")
    if (distinct := len(np.unique(masks, axis=0))) <= n:
        raise RequestError(
            f"{distinct} distinct masks of finite worth cannot distinguish {n} players: measure at least {n + 1}"
        )
    if clusters is not None:
        clusters = clusters[np.isfinite(measured.worths)]
    surrogate = Surrogate.fit(masks, worths, clusters=clusters, seed=seed)
    on_gpu = device != "cpu"
    exact = permutations is None and n <= (EXACT_ON_GPU if on_gpu else EXACT_UP_TO)
    sampled = partial(shapley_values, n_permutations=PERMUTATIONS if permutations is None else permutations, seed=seed)
    text = _text_draws(measured, seed)
    found = intervals(surrogate, partial(_exact, device=device) if exact else sampled, text_draws=text)
    between: Floats | None = None
    best_by_size: list[TopMasks] = []
    wide = n > (_MOST_ON_GPU if on_gpu else _C.MAX_ENUMERATED)
    if (interactions or best) and wide:
        pairwise = RidgeSurrogate.fit_link(surrogate.masks, surrogate.targets, surrogate.link, order=2)
        between = pairwise.link_game.coupling if interactions else None
        best_by_size = _best_of_pairwise(pairwise.link_game, best, seed, progress) if best else []
    elif interactions or best:
        enumerated = enumerate_masks(surrogate, interactions=interactions, top=best, progress=progress, device=device)
        between = enumerated.sii() if interactions else None
        best_by_size = enumerated.best
    return Valuation(
        measured.player_names,
        surrogate,
        "exact" if exact else "permutation",
        found,
        n_dropped,
        text is not None,
        between,
        best_by_size,
        "pairwise ridge" if wide else "surrogate",
    )


def _best_of_pairwise(game: PairwiseGame, top: int, seed: int, progress: Progress | None) -> list[TopMasks]:
    """The best masks of every size of a pairwise game."""
    n = game.n_players
    ends = [np.zeros((1, n), dtype=np.bool_), np.ones((1, n), dtype=np.bool_)]
    none, everything = (TopMasks(mask, game(mask), game(mask)) for mask in ends)
    between = []
    for kept in range(1, n):
        found = best_masks(game, n - kept, top=top, seed=seed, restarts=3, node_limit=_NODES, time_limit=_SECONDS)
        between.append(TopMasks(found.masks, found.worths, found.worths))
        if progress is not None:
            progress("sizes", kept, n - 1)
    return [none, *between, everything]


def _exact(game: Game, device: str) -> ShapleyValues:
    """Exact Shapley values of the games that `intervals` passes: the ensemble and its members, which are networks."""
    assert isinstance(game, NetworkGame)
    values = enumerate_masks(game, device=device).shapley()
    return ShapleyValues(values, np.zeros(game.n_players), 2**game.n_players, "exact")


def _text_draws(measured: Worths, seed: int) -> Floats | None:
    """Contributions from each resampling of the windows, `float64[B, n]`; None where windows cannot be resampled."""
    usable = measured.fingerprints.get("utility") in _MEANS_OF_WINDOWS
    if not usable or len(measured.window_tokens) < 2:
        return None
    domains = Domains.of(measured.fingerprints.get("calibration"))
    if domains is not None and min(np.bincount(domains.of_window)) < 2:
        return None
    order = 2 if measured.masks.shape[1] <= _MOST_PAIRED else 1
    return text_bootstrap(
        measured.masks, measured.window_nll, measured.window_tokens, order=order, seed=seed, domains=domains
    )
