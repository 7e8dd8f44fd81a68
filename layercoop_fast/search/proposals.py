"""Masks to measure next: neighbours of good ones, the best predicted ones, and what measuring each may gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.base import Allowed
from layercoop_fast.search.target import Target
from layercoop_fast.surrogate.expansion import Expansion

# Swaps of a climb that are checked against the family, masks around a local optimum that are proposed, and the least
# gain of a step in units of the noise.
_TRIED, _AROUND, _GAIN = 200, 8, 1e-6
# For unequal targets: prices of a unit saved, relative to the first cover's; climbs; neighbours considered in a step.
_PRICES, _COVER_CLIMBS, _NEAR = (0.3, 0.6, 1.0, 1.5, 3.0), 3, 200


def additions(parents: Sequence[Masks]) -> Masks:
    """Each parent (bool [n]) with one more player removed: bool [M, n], repeats included."""
    rows = []
    for parent in parents:
        kept = np.flatnonzero(parent)
        children = np.tile(parent, (len(kept), 1))
        children[np.arange(len(kept)), kept] = False
        rows.append(children)
    return np.concatenate(rows) if rows else np.empty((0, 0), dtype=np.bool_)


def swaps(parents: Sequence[Masks]) -> Masks:
    """Each parent (bool [n]) with a kept and a removed player exchanged: bool [M, n], repeats included."""
    rows = []
    for parent in parents:
        kept, removed = np.flatnonzero(parent), np.flatnonzero(~parent)
        out, back = np.repeat(kept, len(removed)), np.tile(removed, len(kept))
        children = np.tile(parent, (len(out), 1))
        children[np.arange(len(out)), out] = False
        children[np.arange(len(out)), back] = True
        rows.append(children)
    return np.concatenate(rows) if rows else np.empty((0, 0), dtype=np.bool_)


def predicted_best(fit: Expansion, starts: Sequence[Masks], allowed: Allowed | None = None) -> Masks:
    """Masks of low expected loss that climbs by swaps find from allowed starts (bool [n]), bool [M, n].

    Removing i instead of j changes the loss by m_i − m_j − b_ij, with m = a + b R, so the change of every swap is known
    at once. The best allowed swap is made until none gains; the local optimum and its best neighbours are returned.
    """
    found: dict[bytes, Masks] = {}
    for start in starts:
        mask = start.copy()
        for _ in range(len(mask)):
            kept, removed = np.flatnonzero(mask), np.flatnonzero(~mask)
            marginals = fit.linear + fit.pairs @ ~mask
            change = marginals[kept][:, None] - marginals[removed] - fit.pairs[np.ix_(kept, removed)]
            order = np.argsort(change, axis=None)[:_TRIED]
            near = []
            for out, back in zip(*np.unravel_index(order, change.shape), strict=True):
                other = mask.copy()
                other[kept[out]], other[removed[back]] = False, True
                if allowed is None or allowed.check(other) is None:
                    near.append((float(change[out, back]), other))
                if near and len(near) >= (_AROUND if near[0][0] >= 0 else 1):
                    break
            if not near or near[0][0] >= -_GAIN * fit.noise:
                break
            mask = near[0][1]
        found |= {one.tobytes(): one for one in (mask, *(other for _, other in near))}
    return np.array(list(found.values()), dtype=np.bool_).reshape(-1, fit.n_players)


def fitted(fit: Expansion, target: Target, mask: Masks, allowed: Allowed | None, price: float = 0.0) -> Masks:
    """`mask` (bool [n]) changed to meet an unequal target: players removed by expected loss and cost, then trimmed.

    With a price of 0 the next player removed is that of the least expected loss per cost saved; with another price, the
    one of the least expected loss minus the price of the cost saved. Removals after which no allowed mask can be
    reached are skipped.
    """
    mask = mask.copy()
    marginals = fit.linear + fit.pairs @ ~mask
    tried = ~mask
    while not target.met(mask) and mask.sum() > 1:
        useful = np.minimum(target.costs, max(target.least - target.saved(mask), 0.0))
        worth = marginals - price * useful if price else marginals / np.maximum(useful, 1e-300)
        player = int(np.where(tried | (target.costs <= 0), np.inf, worth).argmin())
        if tried[player]:
            break
        tried[player] = True
        mask[player] = False
        if not target.leads_on(mask, allowed):
            mask[player] = True
            continue
        marginals = marginals + fit.pairs[player]
    # The value of a removed player is the expected gain of putting it back.
    return target.trimmed(mask, fit.linear + fit.pairs @ ~mask)


def predicted_covers(fit: Expansion, target: Target, allowed: Allowed | None, rng: np.random.Generator) -> Masks:
    """Wanted masks of low expected loss for an unequal target, bool [M, n].

    Greedy covers at several prices are improved by exchanges while these gain. An exchange swaps two players or removes
    one more, and `fitted` makes the result meet the target.
    """
    n = fit.n_players
    everything = np.ones(n, dtype=np.bool_)
    if target.must_go is not None:
        everything = everything & ~target.must_go
    start = fitted(fit, target, everything, allowed)
    rate = max(float(fit.mean(~start[None])[0]), 0.0) / max(target.saved(start), 1e-300)
    starts = [start, *(fitted(fit, target, everything, allowed, rate * factor) for factor in _PRICES)]
    best = {mask.tobytes(): mask for mask in starts if target.wants(mask)}
    for mask in list(best.values())[:_COVER_CLIMBS]:
        loss = float(fit.mean(~mask[None])[0])
        for _ in range(n):
            near = np.concatenate([swaps([mask]), additions([mask])])
            near = near[rng.permutation(len(near))[:_NEAR]]
            made = [fitted(fit, target, one, allowed) for one in near]
            made = [one for one in made if target.wants(one) and (allowed is None or allowed.check(one) is None)]
            if not made:
                break
            losses = fit.mean(~np.stack(made))
            order = np.argsort(losses, kind="stable")
            best |= {made[row].tobytes(): made[row] for row in order[:3]}
            if losses[order[0]] >= loss:
                break
            mask, loss = made[order[0]], float(losses[order[0]])
    return np.array(list(best.values()), dtype=np.bool_).reshape(-1, n)


def expected_improvement(means: Floats, deviations: Floats, best: float) -> Floats:
    """Expected improvement of each candidate's loss below `best`, counting 0 where it is above: float64 [M].

    For a normal loss of mean μ and standard deviation s it is (best − μ) Φ(z) + s φ(z), z = (best − μ) / s. Where no
    mask is measured yet (`best` is infinite), it is a positive number that decreases with the mean.
    Source: Jones, Schonlau and Welch (1998).

    Args:
        means: float64 [M].
        deviations: float64 [M].
        best: the loss to improve on.
    """
    if math.isinf(best):
        ranked: Floats = np.exp(means.min() - means) + 1.0
        return ranked
    deviations = np.maximum(deviations, 1e-150)
    gap = best - means
    z = gap / deviations
    below = 0.5 * np.array([math.erfc(-value / math.sqrt(2.0)) for value in z])
    gains: Floats = gap * below + deviations * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    positive: Floats = np.maximum(gains, 0.0)
    return positive


def choose(means: Floats, covariance: Floats, best: float, noise: float, count: int) -> list[int]:
    """Rows of up to `count` candidates to measure together, by expected improvement.

    After each choice the covariance is updated as if that candidate were measured, so that the batch does not consist
    of nearly equal masks. Candidates without expected improvement are left out.

    Args:
        means: float64 [M], expected losses.
        covariance: float64 [M, M], of the losses.
        best: the loss to improve on.
        noise: standard deviation of a measurement.
        count: most candidates.
    """
    covariance = covariance.copy()
    chosen: list[int] = []
    for _ in range(min(count, len(means))):
        gains = expected_improvement(means, np.sqrt(np.maximum(np.diag(covariance), 0.0)), best)
        gains[chosen] = -1.0
        candidate = int(gains.argmax())
        if gains[candidate] <= 0:
            break
        chosen.append(candidate)
        column = covariance[:, candidate].copy()
        covariance -= np.outer(column, column) / (column[candidate] + noise**2)
    return chosen
