"""Fitting the ensemble: each network starts from a ridge and is trained as long as masks that it has not seen gain.

The ridge is that of the network's own bootstrap sample. There are two runs, at the same time on two threads. The
*trial* holds masks out, inside the training strata (a tenth) and outside (whole strata, one a network). It finds the
number of epochs after which their error is least, and every figure of the report comes from it. The *final* run trains
the ensemble on all pairs and keeps a snapshot whenever the trial judges its error. The result is the snapshot after the
number of epochs that the trial chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.surrogate.link import Link
from layercoop_fast.surrogate.quality import Quality, Report, r_squared, report
from layercoop_fast.surrogate.ridge import RidgeSurrogate, weighted_lines
from layercoop_fast.surrogate.threads import one_thread
from layercoop_fast.surrogate.training import Parameters, Schedule, forward, train

Counts = npt.NDArray[np.uint8]

_IDENTITY = Link("identity")

_HELD_OUT = 0.1
_LEAST_FOR_TRIAL = 50  # with fewer pairs a tenth is too few to judge by, and the networks remain the initial ridges
_STEPS = 1200
_RATE, _DECAY = 0.01, 0.1
_PATIENCE = 0.25  # a trial ends after this share of the schedule without a gain
_MOST_PAIRS = 1000  # 45 players: with more, the pairwise reference would take longer than the fit
_EXACT = 1e-4  # of the targets' spread: smaller errors are rounding of float32, and reducing them is not a gain
_UPDATE_EPOCHS, _UPDATE_RATE = 0.1, 0.3  # shares of a fit's epochs and rate
_UNJUDGED = Quality(Report(0, math.nan, {}, (math.nan, math.nan)), {}, math.nan, math.nan, 0)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a fit.

    Attributes:
        networks: the fitted ensemble.
        counts: `uint8[M, E]`, how often each network's bootstrap sample holds each pair.
        quality: the report.
    """

    networks: Networks
    counts: Counts
    quality: Quality


@one_thread()
def fit_networks(
    masks: Masks,
    targets: Floats,
    *,
    ensemble: int,
    hidden: int | None,
    seed: int,
    clusters: npt.NDArray[np.int64] | None = None,
) -> Fitted:
    """Fit `ensemble` networks of `hidden` units to masks `bool[M, n]` and targets `float64[M]` (finite, M ≥ 1).

    A bootstrap sample holds all or none of the pairs that have one number in `clusters` `int64[M]`.

    Raises:
        RequestError: for an empty ensemble, for fewer than 2 units (one carries the linear part), and for clusters of
            another number of pairs.
    """
    n_masks, n = masks.shape
    hidden = max(2, 2 * n) if hidden is None else hidden
    if ensemble < 1 or hidden < 2:
        raise RequestError(f"ensemble must be at least 1 and hidden at least 2, not {ensemble} and {hidden}")
    rng = np.random.default_rng([seed, 0])
    together = np.arange(n_masks)
    if clusters is not None:
        if np.shape(clusters) != (n_masks,):
            raise RequestError(f"{n_masks} masks need clusters of shape [{n_masks}], not {list(np.shape(clusters))}")
        together = np.unique(clusters, return_inverse=True)[1]
    counts = bootstrap_counts(int(together.max()) + 1, ensemble, rng)[together]
    counts[:, ~counts.any(axis=0)] = 1  # an empty sample, which a few pairs may give, fits nothing
    held_out = _held_out(masks, rng) if n_masks >= _LEAST_FOR_TRIAL else np.zeros(n_masks, dtype=np.bool_)
    coordinates = Coordinates.of(masks, targets)
    p = _start(masks, targets, counts, coordinates, hidden, torch.Generator().manual_seed(seed))
    if not held_out.any():
        return Fitted(coordinates.fold(p), counts, _UNJUDGED)

    decided: list[int] = []
    snapshots: dict[int, Parameters] = {0: p.clone()}
    schedule = _schedule(n_masks)

    def keep(epoch: int) -> bool:
        if schedule.is_look(epoch):
            snapshots[epoch] = p.clone()
        return not decided or epoch < decided[0]

    def final() -> None:
        torch.set_num_threads(1)  # torch has one setting for each thread that calls it
        rows = coordinates.inputs(masks), coordinates.targets(targets, ensemble), _float32(counts)
        train(p, *rows, schedule, torch.Generator().manual_seed(seed + 1), after_epoch=keep)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(final)
        references = pool.submit(_references, masks, targets, held_out)  # the trial has more to do than the final run
        try:
            quality = _trial(masks, targets, counts, held_out, hidden, schedule, seed, references.result)
            decided.append(quality.epochs)
        finally:
            decided.append(0)
        running.result()
    return Fitted(coordinates.fold(snapshots[quality.epochs]), counts, quality)


@one_thread()
def refit_networks(old: Fitted, masks: Masks, targets: Floats, *, seed: int) -> Fitted:
    """Continue from fitted networks on all pairs: masks `bool[M, n]` and targets `float64[M]`.

    The old pairs, of which `old.counts` has a row each, come first. The linear part of each network moves by the ridge
    of what the network leaves unexplained, in closed form. A few epochs at a lower rate follow.
    """
    n_old = len(old.counts)
    fresh = bootstrap_counts(len(masks) - n_old, old.networks.n_networks, np.random.default_rng([seed, n_old]))
    counts = np.concatenate([old.counts, fresh])
    coordinates = Coordinates.of(masks, targets)
    p = coordinates.unfold(old.networks)
    left = targets[:, None] - coordinates.back(forward(p, coordinates.inputs(masks)))
    penalty = RidgeSurrogate.fit_link(masks, left.mean(axis=1), _IDENTITY, order=1).penalty
    weight, constant = weighted_lines(masks, left, counts, penalty)
    moved = coordinates.linear(weight, constant + coordinates.mean)
    p.linear += moved[0]
    p.constant += moved[1]
    schedule = _schedule(len(masks))
    schedule = replace(schedule, epochs=max(1, int(schedule.epochs * _UPDATE_EPOCHS)), lr=schedule.lr * _UPDATE_RATE)
    columns = old.networks.n_networks
    rows = coordinates.inputs(masks), coordinates.targets(targets, columns), _float32(counts)
    train(p, *rows, schedule, torch.Generator().manual_seed(seed))
    return Fitted(coordinates.fold(p), counts, old.quality)


def bootstrap_counts(n_masks: int, ensemble: int, rng: np.random.Generator) -> Counts:
    """Return how often each bootstrap sample holds each pair, `uint8[M, E]`: independent Poisson(1) numbers.

    Given its size such a sample is a classical bootstrap sample, and later pairs do not change the counts of earlier
    ones. An ensemble of one sees every pair once. Source: Oza and Russell, 2001.
    """
    if ensemble == 1:
        return np.ones((n_masks, 1), dtype=np.uint8)
    return rng.poisson(1.0, size=(n_masks, ensemble)).astype(np.uint8)


def _trial(
    masks: Masks,
    targets: Floats,
    counts: Counts,
    held_out: Masks,
    hidden: int,
    schedule: Schedule,
    seed: int,
    references: Callable[[], tuple[float, float]],
) -> Quality:
    """Train on what is not held out, with one more network for each stratum left out; report from what is held out."""
    ensemble = counts.shape[1]
    kept = masks.sum(axis=1)
    strata = _strata_left_out(masks)
    seen = np.concatenate([counts * ~held_out[:, None], kept[:, None] != strata], axis=1)
    coordinates = Coordinates.of(masks[~held_out], targets[~held_out])
    p = _start(masks, targets, seen, coordinates, hidden, torch.Generator().manual_seed(seed + 2))
    judged = masks[held_out], targets[held_out]
    outside = [masks[kept == stratum] for stratum in strata]
    truths = [targets[kept == stratum] for stratum in strata]

    def predictions() -> tuple[Floats, list[Floats]]:
        """On held-out masks by every network of the ensemble `[K, E]`; on each stratum by the network without it."""
        inside = coordinates.back(forward(p, coordinates.inputs(judged[0]), slice(ensemble)))
        return inside, [
            coordinates.back(forward(p, coordinates.inputs(block), slice(e, e + 1)))[:, 0]
            for e, block in enumerate(outside, start=ensemble)
        ]

    def errors(found: tuple[Floats, list[Floats]]) -> Floats:
        inside = ((found[0].mean(axis=1) - judged[1]) ** 2).mean()
        return np.array([inside, *(((a - b) ** 2).mean() for a, b in zip(found[1], truths, strict=True))])

    best = predictions()
    unit = np.maximum(errors(best), (_EXACT * coordinates.spread) ** 2)
    history: list[tuple[int, float, float]] = []
    least, chosen = math.inf, 0

    def look(epoch: int) -> bool:
        nonlocal best, least, chosen
        if not schedule.is_look(epoch):
            return True
        found = predictions()
        ratios = errors(found) / unit
        inside, beyond = float(ratios[0]), float(ratios[1:].mean()) if len(strata) else float(ratios[0])
        history.append((epoch, inside, beyond))
        score = (inside + beyond) / 2
        if score < least:
            best, least, chosen = found, score, epoch
        return epoch - chosen < _PATIENCE * schedule.epochs

    look(0)

    rows = coordinates.inputs(masks), coordinates.targets(targets, seen.shape[1]), _float32(seen)
    train(p, *rows, schedule, torch.Generator().manual_seed(seed + 3), after_epoch=look)
    inside, beyond = best
    linear, pairwise = references()
    return Quality(
        inside=report(*judged, inside),
        outside={int(k): r_squared(truth, found) for k, truth, found in zip(strata, truths, beyond, strict=True)},
        linear=linear,
        pairwise=pairwise,
        epochs=chosen,
        history=history,
    )


def _references(masks: Masks, targets: Floats, held_out: Masks) -> tuple[float, float]:
    """R² of the linear and the pairwise ridge on what is held out; NaN for the latter where it would take too long."""

    def r2(order: int) -> float:
        ridge = RidgeSurrogate.fit_link(masks[~held_out], targets[~held_out], _IDENTITY, order=order)
        return r_squared(targets[held_out], ridge.values(masks[held_out]))

    return r2(1), r2(2) if math.comb(masks.shape[1], 2) <= _MOST_PAIRS else math.nan


def _start(
    masks: Masks,
    targets: Floats,
    weights: npt.NDArray[np.generic],
    coordinates: Coordinates,
    hidden: int,
    generator: torch.Generator,
) -> Parameters:
    """Networks that equal the linear ridge of their own pairs (`weights` `[M, columns]`), which takes one unit."""
    unseen = ~weights.any(axis=1)
    penalty = RidgeSurrogate.fit_link(masks[~unseen], targets[~unseen], _IDENTITY, order=1).penalty
    columns = np.broadcast_to(targets[:, None], weights.shape)
    linear = coordinates.linear(*weighted_lines(masks, columns, weights, penalty))
    return Parameters.fresh(*linear, hidden - 1, generator)


def _schedule(n_masks: int) -> Schedule:
    batch_size = int(np.clip(n_masks // 8, 16, 256))
    return Schedule(max(1, _STEPS * batch_size // n_masks), batch_size, _RATE, _DECAY)


def _held_out(masks: Masks, rng: np.random.Generator) -> Masks:
    """Choose a tenth of the distinct masks of each size, `bool[M]`: no copy of a held-out mask is trained on."""
    distinct, which = np.unique(masks, axis=0, return_inverse=True)
    chosen = np.zeros(len(distinct), dtype=np.bool_)
    kept = distinct.sum(axis=1)
    for size in np.unique(kept):
        rows = np.flatnonzero(kept == size)
        chosen[rng.permutation(rows)[: round(len(rows) * _HELD_OUT)]] = True
    held_out: Masks = chosen[which.reshape(-1)]
    return held_out


def _strata_left_out(masks: Masks) -> npt.NDArray[np.intp]:
    """Return the sizes that are left out in turn: at most 5 of those with 5 distinct masks or more, evenly spread.

    There are none where fewer than three sizes qualify: without one of two, little is left to learn from.
    """
    sizes, counts = np.unique(np.unique(masks, axis=0).sum(axis=1), return_counts=True)
    sizes = sizes[counts >= 5]
    if len(sizes) < 3:
        return sizes[:0]
    evenly = np.linspace(0, len(sizes) - 1, min(5, len(sizes))).round().astype(np.intp)
    left_out: npt.NDArray[np.intp] = sizes[np.unique(evenly)]
    return left_out


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates of training: x = (m − p) / s and t = (y − μ) / σ, so that both have about unit variance.

    Attributes:
        centre: p, `float64[n]`.
        width: s.
        mean: μ.
        spread: σ.
    """

    centre: Floats
    width: float
    mean: float
    spread: float

    @classmethod
    def of(cls, masks: Masks, targets: Floats) -> Coordinates:
        """The coordinates for masks `bool[M, n]` and targets `float64[M]`; where nothing varies the unit is 1."""
        centre: Floats = masks.mean(axis=0)
        width = float(np.sqrt((centre * (1 - centre)).mean()))
        spread = float(targets.std()) if targets.min() < targets.max() else 1.0
        return cls(centre, width or 1.0, float(targets.mean()), spread)

    def inputs(self, masks: Masks) -> Tensor:
        """Return x of masks `bool[M, n]`, `float32[M, n]`."""
        return _float32((masks - self.centre) / self.width)

    def targets(self, targets: Floats, columns: int) -> Tensor:
        """Return t of targets `float64[M]`, once for each network: `float32[M, columns]`."""
        return _float32((targets - self.mean) / self.spread)[:, None].expand(-1, columns).contiguous()

    def back(self, values: Tensor) -> Floats:
        """Return y of network values t `float32[...]`: `float64[...]`."""
        return np.asarray(values.double().numpy() * self.spread + self.mean)

    def linear(self, weight: Floats, constant: Floats) -> tuple[Tensor, Tensor]:
        """Return ℓ `float32[E, n]` and c `float32[E]` of linear parts y = constant `[E]` + weight `[E, n]` · m."""
        scaled = weight * self.width / self.spread
        return _float32(scaled), _float32((constant + weight @ self.centre - self.mean) / self.spread)

    def fold(self, p: Parameters) -> Networks:
        """Write the networks over plain 0/1 masks, with H + 1 units: the last one carries the linear part.

        With w the linear part in 0/1 coordinates, R = Σ |w| and B = Σ max(0, −w), its pre-activation (w · m + B) / R
        lies in [0, 1] for every mask, where CELU is the identity; its output weight is R, and B comes off the constant.
        """
        ensemble, hidden = p.output_weight.shape
        n = p.linear.shape[1]
        weight = p.hidden_weight.double().numpy().reshape(ensemble, hidden, n) / self.width
        bias = p.hidden_bias.double().numpy().reshape(ensemble, hidden) - weight @ self.centre
        linear = p.linear.double().numpy() * self.spread / self.width
        constant = self.back(p.constant) - linear @ self.centre
        reach = np.abs(linear).sum(axis=1)
        shift = np.maximum(-linear, 0).sum(axis=1)
        unit = np.where(reach > 0, reach, 1)
        return Networks(
            np.concatenate([weight, (linear / unit[:, None])[:, None]], axis=1).astype(np.float32),
            np.concatenate([bias, (shift / unit)[:, None]], axis=1).astype(np.float32),
            np.concatenate([p.output_weight.double().numpy() * self.spread, reach[:, None]], axis=1).astype(np.float32),
            (constant - shift).astype(np.float32),
            "celu",
            "linear",
        )

    def unfold(self, networks: Networks) -> Parameters:
        """The inverse of `fold`, to the rounding of float32; the networks may come from other coordinates."""
        weight, bias, output, constant = (
            array.astype(np.float64)
            for array in (
                networks.hidden_weight,
                networks.hidden_bias,
                networks.output_weight,
                networks.output_bias,
            )
        )
        linear = weight[:, -1] * output[:, -1:]
        p = Parameters.zeros(networks.n_networks, networks.n_hidden - 1, networks.n_players)
        p.hidden_weight.copy_(_float32(weight[:, :-1] * self.width).reshape(p.hidden_weight.shape))
        p.hidden_bias.copy_(_float32(bias[:, :-1] + weight[:, :-1] @ self.centre).reshape(-1))
        p.output_weight.copy_(_float32(output[:, :-1] / self.spread))
        scaled, offset = self.linear(linear, constant + bias[:, -1] * output[:, -1])
        p.linear.copy_(scaled)
        p.constant.copy_(offset)
        return p


def _float32(array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
