"""Which masks to look at next: neighbours of good ones, what a surrogate predicts, and what measuring each may gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.base import Allowed
from layercoop_fast.search.target import Target
from layercoop_fast.surrogate.expansion import Expansion

# Swaps of a climb that are tried for being allowed, masks around a top that are proposed, and the least gain of a step
# in units of the noise.
_TRIED, _AROUND, _GAIN = 200, 8, 1e-6
# Of unequal targets: prices of a unit saved, in units of the first cover's, climbs, and neighbours looked at a step.
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
    """Each parent (bool [n]) with a kept and a removed player in each other's place: bool [M, n], repeats included."""
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
    """Masks of least expected loss, of the size of the starts (bool [n], allowed), as climbs by swaps find them.

    Removing i instead of j changes the loss by m_i − m_j − b_ij, with m = a + b R, so all swaps are known at once. The
    best allowed swap is made until none gains; the top and what is around it are returned, bool [M, n].
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
    """`mask` (bool [n]) made to meet an unequal target: players removed by expected loss and cost, then trimmed.

    With a price of 0 the player of least expected loss for what it saves goes next; with another, that of least
    expected loss beyond the price of what it saves. What is allowed decides among single removals, as far as it can.
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
    # What putting a player back is expected to win back.
    return target.trimmed(mask, fit.linear + fit.pairs @ ~mask)


def predicted_covers(fit: Expansion, target: Target, allowed: Allowed | None, rng: np.random.Generator) -> Masks:
    """Wanted masks of low expected loss for an unequal target: greed at several prices, then exchanges while they gain.

    An exchange swaps two players or adds one, and fits what comes out.
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
    """By how much each candidate is expected to lie below `best` (0 where above): float64 [M].

    With a normal loss of mean μ and standard deviation s, (best − μ) Φ(z) + s φ(z), z = (best − μ) / s. Where nothing
    is measured yet (`best` infinite) the candidates rank by their means, all of them worth measuring.
    Source: Jones, Schonlau and Welch (1998).
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
    """Up to `count` candidates to measure together, by expected improvement.

    After each the covariance is what it will be once that one is measured, so that a batch is not eight times the same
    question. Candidates that add nothing any more are left out.
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
