"""Which masks to look at next: neighbours of good ones, what a surrogate predicts, and what measuring each may gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layercoop_fast.game.protocol import Floats, Masks
from layercoop_fast.search.best_masks import best_masks
from layercoop_fast.surrogate.expansion import Expansion

# Predicted best masks that are proposed, and climbs that look for them.
_PREDICTED, _CLIMBS = 16, 6


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


def predicted_best(fit: Expansion, n_remove: int, rng: np.random.Generator) -> Masks:
    """The masks of least expected loss that remove `n_remove` players, as far as climbs by swaps find them."""
    found = best_masks(
        lambda masks: -fit.mean(~masks),
        n_remove,
        n_players=fit.n_players,
        top=_PREDICTED,
        restarts=_CLIMBS,
        seed=int(rng.integers(1 << 31)),
    )
    return found.masks


def expected_improvement(means: Floats, covariance: Floats, best: float) -> Floats:
    """By how much each candidate is expected to lie below `best` (0 where above): float64 [M].

    With a normal loss of mean μ and standard deviation s, (best − μ) Φ(z) + s φ(z), z = (best − μ) / s. Where nothing
    is measured yet (`best` infinite) the candidates rank by their means, all of them worth measuring.
    Source: Jones, Schonlau and Welch (1998).
    """
    if math.isinf(best):
        ranked: Floats = np.exp(means.min() - means) + 1.0
        return ranked
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    gap = best - means
    z = gap / deviation
    below = 0.5 * np.array([math.erfc(-value / math.sqrt(2.0)) for value in z])
    gains: Floats = gap * below + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
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
        gains = expected_improvement(means, covariance, best)
        gains[chosen] = -1.0
        candidate = int(gains.argmax())
        if gains[candidate] <= 0:
            break
        chosen.append(candidate)
        column = covariance[:, candidate].copy()
        covariance -= np.outer(column, column) / (column[candidate] + noise**2)
    return chosen
