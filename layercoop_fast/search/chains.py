"""Chains of masks, each of which removes the players of the previous one and more: the best measured and near ones.

A chain is bool [m, n], a row of removed players for each size, sizes ascending. A move exchanges players a and b in the
order in which players are removed, where a was removed first: the masks between then keep a and remove b. A b that was
in all masks takes the place of a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.measurements import MeasuredMask
from layercoop_fast.surrogate.expansion import Expansion

# Exchanges of a climb that are checked against the family, and the least gain of a step in units of the noise.
_TRIED, _GAIN = 50, 1e-6


def best_chain(sizes: Sequence[Sequence[MeasuredMask]]) -> list[MeasuredMask]:
    """The chain of measured masks that ends in one of the last size: the longest, and of those the least total loss.

    Args:
        sizes: measured masks by size, sizes ascending; the last size has one at least, and all losses are finite.

    Sizes none of whose masks fit into the chain are left out.
    """
    # For each size: removed players float64 [E, n], length of the best chain that ends in each mask, its total loss,
    # and the mask before it.
    found: list[tuple[Floats, Any, Floats, list[tuple[int, int] | None]]] = []
    for entries in sizes:
        removed = np.array([~entry.mask for entry in entries], dtype=np.float64)
        losses = np.array([entry.loss for entry in entries])
        length, total = np.ones(len(entries), dtype=np.int64), losses.copy()
        origin: list[tuple[int, int] | None] = [None] * len(entries)
        for before, (others, lengths, totals, _) in enumerate(found):
            if not len(others) or not len(removed):
                continue
            within = others @ (1 - removed).T == 0  # [E', E]
            for here in range(len(entries)):
                rows = np.flatnonzero(within[:, here])
                if not len(rows):
                    continue
                row = int(rows[np.lexsort((totals[rows], -lengths[rows]))[0]])
                longer, cost = int(lengths[row]) + 1, float(totals[row] + losses[here])
                if (-longer, cost) < (-length[here], total[here]):
                    length[here], total[here], origin[here] = longer, cost, (before, row)
        found.append((removed, length, total, origin))
    at: tuple[int, int] | None = (len(sizes) - 1, int(np.lexsort((found[-1][2], -found[-1][1]))[0]))
    chain = []
    while at is not None:
        size, row = at
        chain.append(sizes[size][row])
        at = found[size][3][row]
    return chain[::-1]


def gains(fit: Expansion, chain: Masks) -> Floats:
    """The decrease of the total expected loss by exchanging a and b, float64 [n, n]; −∞ where that is not a move.

    Keeping a and removing b changes the loss of R by m_b − m_a − b_ab, with m = a + b R. `chain` is bool [m, n].
    """
    removed = chain.astype(np.float64)
    kept = 1 - removed
    marginals = fit.linear + removed @ fit.pairs
    change = removed.T @ (kept * marginals) - (removed * marginals).T @ kept - fit.pairs * (removed.T @ kept)
    first = np.where(chain.any(axis=0), chain.argmax(axis=0), len(chain))
    found: Floats = np.where(first[:, None] < first, -change, -np.inf)
    return found


def exchanged(chain: Masks, a: int, b: int) -> Masks:
    """A copy of the chain, bool [m, n], with players a and b exchanged."""
    other: Masks = chain.copy()
    other[:, [a, b]] = chain[:, [b, a]]
    return other


def neighbours(fit: Expansion, chain: Masks, count: int) -> list[Masks]:
    """The chains, bool [m, n] each, by the `count` exchanges of `chain` with the highest expected gain."""
    expected = gains(fit, chain)
    order = np.argsort(-expected, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(row, expected.shape) for row in order]
    return [exchanged(chain, int(a), int(b)) for a, b in pairs if np.isfinite(expected[a, b])]


def climbed(fit: Expansion, chain: Masks, allowed: Callable[[Masks], bool]) -> Masks:
    """The chain (bool [m, n]) after exchanges, each the best allowed one, until none gains."""
    for _ in range(chain.size):
        expected = gains(fit, chain)
        least = _GAIN * fit.noise
        order = np.argsort(-expected, axis=None, kind="stable")[:_TRIED]
        steps = (np.unravel_index(row, expected.shape) for row in order)
        better = (exchanged(chain, int(a), int(b)) for a, b in steps if expected[a, b] > least)
        found = next((other for other in better if allowed(other)), None)
        if found is None:
            break
        chain = found
    return chain
