"""Chains of masks, each removing what the one before it removes and more: the best of measured ones, and what is near.

A chain is bool [m, n], one row of removed players a size, sizes growing. The moves are exchanges: players a and b, of
which a goes first, change places in the order in which players go. Of the masks between, a is then kept and b removed;
with a b that stays in all of them, it takes the place of a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.measurements import Entry
from layercoop_fast.surrogate.expansion import Expansion

# Exchanges of a climb that are tried for being allowed, and the least gain of a step in units of the noise.
_TRIED, _GAIN = 50, 1e-6


def best_chain(sizes: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Of entries by size, sizes growing, the chain that ends in one of the last size: longest, then cheapest.

    Sizes whose entries fit into no such chain are left out. The last size has an entry, and all losses are finite.
    """
    # Of each size: removed players float64 [E, n], sizes of the chain that ends there, its total, where it comes from.
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
    """By how much the total of expected losses falls by exchanging a and b, float64 [n, n] (−∞ where that is no move).

    Keeping a and removing b changes the loss of R by m_b − m_a − b_ab, with m = a + b R.
    """
    removed = chain.astype(np.float64)
    kept = 1 - removed
    marginals = fit.linear + removed @ fit.pairs
    change = removed.T @ (kept * marginals) - (removed * marginals).T @ kept - fit.pairs * (removed.T @ kept)
    first = np.where(chain.any(axis=0), chain.argmax(axis=0), len(chain))
    found: Floats = np.where(first[:, None] < first, -change, -np.inf)
    return found


def exchanged(chain: Masks, a: int, b: int) -> Masks:
    """The chain with a and b in each other's place, a copy."""
    other: Masks = chain.copy()
    other[:, [a, b]] = chain[:, [b, a]]
    return other


def neighbours(fit: Expansion, chain: Masks, count: int) -> list[Masks]:
    """The chains by the `count` exchanges that are expected to gain most."""
    expected = gains(fit, chain)
    order = np.argsort(-expected, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(row, expected.shape) for row in order]
    return [exchanged(chain, int(a), int(b)) for a, b in pairs if np.isfinite(expected[a, b])]


def climbed(fit: Expansion, chain: Masks, allowed: Callable[[Masks], bool]) -> Masks:
    """The chain (bool [m, n]) after exchanges, each the best one that is allowed, until none gains."""
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
