"""The uncertainty of contributions, end to end: from sampled masks, fitted networks, and the calibration text.

There are three sources, and each gives a standard error of every player's contribution:

    sampling   the estimator asks a sample of coalitions: its own standard error
    ensemble   other masks could have been measured: each network saw another bootstrap sample of them
    text       other text could have been used: the windows are drawn again, with replacement

They are taken as independent, so their variances add. Everything is on the scale of the fit (usually nats of log
worth): on this scale the measured NLL is a mean over windows, and the ensemble a mean over networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.game.bootstrap import draw_windows
from layercoop_fast.masks.types import Floats, Game, Masks, check_masks
from layercoop_fast.surrogate.link import Link
from layercoop_fast.surrogate.ridge import RidgeSurrogate
from layercoop_fast.texts.domains import Domains, one_domain


class Estimate(Protocol):
    """The answer of an estimator: a value for each player and its standard error from sampling."""

    @property
    def values(self) -> Floats:
        """`float64[n]`."""

    @property
    def stderr(self) -> Floats:
        """`float64[n]`."""


Estimator = Callable[[Game], Estimate]
"""`estimator(game)`: `shapley_values`, say, or a `partial` of `stratified_marginals`. Its masks must depend on its own
seed alone, so that every network is asked about the same masks and sampling error does not count twice."""


class EnsembleGame(Protocol):
    """A fitted ensemble (see `Surrogate`): the game of its mean, and one game a network, on the scale of the fit."""

    @property
    def link_game(self) -> Game:
        """The mean of the networks, on the scale of the fit."""

    @property
    def members(self) -> Sequence[Game]:
        """Each network as a game, on the scale of the fit."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """A contribution for each player, and how far each source of error could move it, on the scale of the fit.

    Attributes:
        values: `float64[n]`, the estimate on the mean of the networks.
        sampling: `float64[n]`, standard error of the estimator; zeros where it sampled nothing.
        ensemble_draws: `float64[E, n]`, the estimate on each network.
        text_draws: `float64[B, n]`, contributions from each drawing of the windows; B = 0 where the text counts as
            given.
    """

    values: Floats
    sampling: Floats
    ensemble_draws: Floats
    text_draws: Floats

    @property
    def ensemble(self) -> Floats:
        """`float64[n]`: standard deviation over the networks. Not divided by √E: each is one bootstrap of the masks."""
        return _spread(self.ensemble_draws)

    @property
    def text(self) -> Floats:
        """`float64[n]`: standard deviation over the drawings of the windows."""
        return _spread(self.text_draws)

    @property
    def stderr(self) -> Floats:
        """`float64[n]`: all three together, √(sampling² + ensemble² + text²)."""
        return np.asarray(np.sqrt(self.sampling**2 + self.ensemble**2 + self.text**2))

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Lower and upper ends, `float64[n]` each, of the normal interval with coverage `level`."""
        half = _quantile(level) * self.stderr
        return self.values - half, self.values + half

    def unsettled(self, level: float = 0.95) -> list[tuple[int, int]]:
        """The pairs of players (i < j) whose order is not settled at `level`, the least settled first.

        A pair is settled when the interval of the *difference* of its contributions excludes 0. Networks and windows
        move both players at once, so their part is the spread of the differences. How the errors of sampling are
        correlated is not known, and the worst is assumed: they add. Each pair is tested alone: among many pairs at
        95 %, one in twenty that are truly equal will look settled.
        """
        first, second = np.triu_indices(len(self.values), 1)
        variance = (self.sampling[first] + self.sampling[second]) ** 2
        for draws in (self.ensemble_draws, self.text_draws):
            variance = variance + _spread(draws[:, first] - draws[:, second]) ** 2
        gap = np.abs(self.values[first] - self.values[second])
        spread = np.sqrt(variance)
        openness = np.divide(gap, spread, out=np.where(gap > 0, np.inf, 0.0), where=spread > 0)
        order = np.argsort(openness, kind="stable")
        settled_from = _quantile(level)
        return [(int(first[pair]), int(second[pair])) for pair in order if openness[pair] <= settled_from]


def intervals(surrogate: EnsembleGame, estimator: Estimator, *, text_draws: Floats | None = None) -> Intervals:
    """Estimate contributions on the ensemble and on each of its networks: E + 1 calls of `estimator`.

    `text_draws` `float64[B, n]` come from `text_bootstrap`; without them the text counts as given.

    Raises:
        RequestError: for an ensemble of one, which has no spread, and for draws of another width.
    """
    members = surrogate.members
    if len(members) < 2:
        raise RequestError("one network alone has no spread: fit with ensemble=2 or more")
    found = estimator(surrogate.link_game)
    draws = np.array([estimator(member).values for member in members])
    n = len(found.values)
    text = np.empty((0, n)) if text_draws is None else np.asarray(text_draws, dtype=np.float64)
    if text.ndim != 2 or text.shape[1] != n:
        raise RequestError(f"text_draws of {n} players are of shape [B, {n}], not {list(text.shape)}")
    return Intervals(found.values, found.stderr, draws, text)


def text_bootstrap(
    masks: Masks,
    window_nll: Floats,
    window_tokens: npt.NDArray[np.int64],
    *,
    order: int = 2,
    draws: int = 1000,
    seed: int = 0,
    domains: Domains | None = None,
) -> Floats:
    """Return the Shapley values of a pairwise ridge of the negative NLL for each drawing of windows, `float64[B, n]`.

    `masks` `bool[M, n]`, `window_nll` `float64[M, W]` and `window_tokens` `int64[W]` are those of `worths.npz`. A ridge
    is linear in its targets. So the fit to drawing b, which holds window w c_bw times,

        φ_b = Σ_w share_bw φ_w,    share_bw = c_bw tokens_w / Σ_u c_bu tokens_u,

    is a mean of the values φ_w of single windows: one linear system with W right-hand sides serves every drawing, with
    the penalty of the whole text. Masks with an NLL that is not finite are left out. With several texts (`domains`)
    each drawing has as many windows of a text as there are, and the text's weight replaces the tokens.

    Raises:
        RequestError: for arrays that do not fit together, fewer than 2 windows or drawings, and no finite mask.
    """
    check_masks(masks, masks.shape[-1])
    n_masks, n_windows = window_nll.shape if window_nll.ndim == 2 else (-1, -1)
    if n_masks != len(masks) or window_tokens.shape != (n_windows,):
        raise RequestError(
            f"{len(masks)} masks need window_nll [{len(masks)}, W] and window_tokens [W], not "
            f"{list(window_nll.shape)} and {list(window_tokens.shape)}"
        )
    if n_windows < 2 or draws < 2:
        raise RequestError(f"a bootstrap needs at least 2 windows and 2 draws, not {n_windows} and {draws}")
    finite = np.isfinite(window_nll).all(axis=1)
    if not finite.any():
        raise RequestError(f"none of {len(masks)} masks has a finite NLL on every window: nothing to fit")
    masks, values = masks[finite], -window_nll[finite]
    counts = window_tokens if domains is None else domains.shares
    whole = values @ (counts / counts.sum())
    ridge = RidgeSurrogate.fit_link(masks, whole, Link("identity"), order=order)
    by_window = ridge.shapley_of(masks, values)
    drawn = draw_windows(one_domain(n_windows) if domains is None else domains, draws, np.random.default_rng(seed))
    share = drawn * counts
    result: Floats = (share / share.sum(axis=1, keepdims=True)) @ by_window
    return result


def _spread(draws: Floats) -> Floats:
    """Return the standard deviation over draws, `float64[n]` of `float64[B, n]`; 0 where there are none."""
    return draws.std(axis=0, ddof=1) if len(draws) else np.zeros(draws.shape[1])


def _quantile(level: float) -> float:
    """Return z with P(|standard normal| ≤ z) = level."""
    if not 0 < level < 1:
        raise RequestError(f"a level lies between 0 and 1, not {level}")
    return NormalDist().inv_cdf((1 + level) / 2)
