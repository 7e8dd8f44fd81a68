"""Which masks to ask: samplers and small complete sets, as `bool[M, n]` with True = kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.bounds import MAX_MASK_BITS, MAX_PLAYERS
from layercoop_fast.masks.types import Masks

# Kept players a stratum, as published (arXiv 2602.07804). 64 is a table of its own there, not 32 scaled.
_PUBLISHED = {32: (30, 27, 24, 21, 18), 64: (60, 56, 52, 48, 42, 38, 34)}

# Rows drawn at a time: keeps the [n, block] scratch in cache. Part of the stream, so changing it changes every sample.
_BLOCK = 1 << 15

_MAX_ALL = 20


def published_strata(n_players: int) -> list[int]:
    """Return the published kept counts, largest first: those of 32 and 64 players as printed, 32's scaled for others.

    Scaling is k·n/32 rounded half up, clipped to 1..n−1, without repeats. Source: arXiv 2602.07804.
    Raises `RequestError` below 2 players, where nothing lies between all and none.
    """
    if n_players < 2:
        raise RequestError(f"strata need at least 2 players, not {n_players}")
    if n_players in _PUBLISHED:
        return list(_PUBLISHED[n_players])
    scaled = ((2 * kept * n_players + 32) // 64 for kept in _PUBLISHED[32])
    return sorted({min(max(kept, 1), n_players - 1) for kept in scaled}, reverse=True)


def stratified_masks(
    n_players: int, n_masks: int, *, seed: int | Sequence[int] = 0, strata: Sequence[int] | None = None
) -> Masks:
    """Draw masks stratified by how many players they keep, uniformly (with replacement) inside each stratum.

    `strata` are the kept counts, `published_strata(n_players)` unless given. Each gets ⌊n_masks / strata⌋ rows and the
    first n_masks mod strata get one more; rows come stratum by stratum in the order given. `seed` is anything
    `numpy.random.default_rng` takes; the same arguments give the same masks on every machine of one NumPy version.

    Returns `bool[n_masks, n_players]`. Raises `RequestError` for a count below 1 or a stratum that is not among 0..n.

    Examples:
        >>> from layercoop_fast import stratified_masks
        >>> masks = stratified_masks(8, 6, seed=0, strata=[6, 4])
        >>> masks.shape, masks.sum(axis=1).tolist()
        ((6, 8), [6, 6, 6, 4, 4, 4])
    """
    counts = stratum_counts(n_players, n_masks, strata)
    rng = np.random.default_rng(seed)
    masks = np.empty((n_masks, n_players), dtype=np.bool_)
    start = 0
    for kept, count in counts:
        stop = start + count
        for low in range(start, stop, _BLOCK):
            block = masks[low : min(low + _BLOCK, stop)]
            block[:] = _uniform_masks(rng, n_players, kept, len(block))
        start = stop
    return masks


def stratum_counts(n_players: int, n_masks: int, strata: Sequence[int] | None) -> list[tuple[int, int]]:
    """Return (kept players, rows) of each stratum, as `stratified_masks` shares them out; it says what is refused."""
    kept_counts = published_strata(n_players) if strata is None else list(strata)
    if n_masks < 1:
        raise RequestError(f"n_masks must be at least 1, not {n_masks}")
    if n_players > MAX_PLAYERS or n_masks * n_players > MAX_MASK_BITS:
        raise RequestError(
            f"{n_masks} masks of {n_players} players are too many to lay out: masks are of {MAX_PLAYERS:,} players and "
            f"{MAX_MASK_BITS:,} bits in all at most"
        )
    if not kept_counts or len(set(kept_counts)) < len(kept_counts):
        raise RequestError(f"strata must be distinct kept counts, at least one, not {kept_counts}")
    if outside := [kept for kept in kept_counts if not 0 <= kept <= n_players]:
        raise RequestError(f"a stratum keeps between 0 and {n_players} players, not {outside[0]}")
    share, rest = divmod(n_masks, len(kept_counts))
    return [(kept, share + (index < rest)) for index, kept in enumerate(kept_counts)]


def all_masks(n_players: int) -> Masks:
    """Return every mask as `bool[2**n, n]`: row r keeps player i where bit i of r is set. `RequestError` beyond 20."""
    if not 1 <= n_players <= _MAX_ALL:
        raise RequestError(f"all masks are listed for 1 to {_MAX_ALL} players, not {n_players}")
    rows = np.arange(1 << n_players, dtype=np.uint32)
    masks: Masks = rows[:, None] >> np.arange(n_players, dtype=np.uint32) & 1 == 1
    return masks


def _uniform_masks(rng: np.random.Generator, n_players: int, kept: int, n_rows: int) -> Masks:
    """Draw rows uniformly among those with exactly `kept` True: selection sampling, all rows at once.

    Player j is kept with probability (still needed) / (still to come), which is exact and sorts nothing.
    Source: Knuth, The Art of Computer Programming, volume 2, section 3.4.2, algorithm S.
    """
    columns = np.empty((n_players, n_rows), dtype=np.bool_)
    needed = np.full(n_rows, kept, dtype=np.uint32)
    for j in range(n_players):
        np.less(rng.integers(n_players - j, size=n_rows, dtype=np.uint32), needed, out=columns[j])
        needed -= columns[j]
    masks: Masks = columns.T
    return masks
