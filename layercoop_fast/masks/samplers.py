"""Samplers whose masks share their beginnings, so that a mask costs fewer layer evaluations.

The engine computes every distinct kept prefix once. Masks drawn alone share little more than their first few players;
masks drawn together can share as many as one likes, but are then no independent draws: they tell less each, and their
errors go by *clusters*. Every sampler has one call form,

    sampler(n_players, n_masks, *, seed, strata) -> Sample

and draws uniformly within each stratum: each row on its own is as likely to be any mask of its size as any other. So a
mean over the rows of a stratum has the expectation that it has under `stratified_masks`, whatever shares with whatever.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import stratified_masks, stratum_counts
from layercoop_fast.masks.types import Masks

Seed = int | Sequence[int]

# Share of the players before the cut, and suffixes a prefix, unless the caller says otherwise: the best of those in
# docs/performance.md.
_CUT = 2 / 3
_SUFFIXES = 2

# Strata of up to this many masks are listed before some are drawn; from larger ones masks are drawn without repeats.
_LISTED = 1 << 16


class Sample(NamedTuple):
    """Masks, and which of them were drawn together."""

    masks: Masks
    """`bool[M, n]`, stratum by stratum in the order of the strata."""
    clusters: npt.NDArray[np.int64]
    """`int64[M]`: rows of one number depend on each other, rows of different numbers do not."""


class Sampler(Protocol):
    """The one call form. `strata` are kept counts; None means the sampler's own."""

    def __call__(self, n_players: int, n_masks: int, *, seed: Seed = 0, strata: Sequence[int] | None = None) -> Sample:
        """Return exactly `n_masks` rows. The same arguments give the same sample on every machine of one NumPy."""


def independent_masks(n_players: int, n_masks: int, *, seed: Seed = 0, strata: Sequence[int] | None = None) -> Sample:
    """`stratified_masks`, every row a cluster of its own: the published way."""
    masks = stratified_masks(n_players, n_masks, seed=seed, strata=strata)
    return Sample(masks, np.arange(n_masks))


def two_stage_masks(
    n_players: int,
    n_masks: int,
    *,
    seed: Seed = 0,
    strata: Sequence[int] | None = None,
    cut: int | None = None,
    suffixes: int = _SUFFIXES,
) -> Sample:
    """Draw prefixes, and `suffixes` completions of each: the players before `cut` are computed once for all of them.

    A prefix is the beginning of a uniform mask of the stratum, so how many players it keeps is hypergeometric; given
    that number every completion is as likely. Both together make each row uniform in its stratum. The completions of
    one prefix are a cluster. `cut` is two thirds of the players unless given. Stratum shares are those of
    `stratified_masks`; where one is not a multiple of `suffixes` its last prefix has fewer.

    Raises `RequestError` as `stratified_masks` does, for a cut outside 1..n − 1 and for less than one suffix.
    """
    cut = round(_CUT * n_players) if cut is None else cut
    _check_cut(n_players, cut, suffixes)
    rng = np.random.default_rng(seed)
    masks, clusters, n_clusters = [], [], 0
    for kept, count in stratum_counts(n_players, n_masks, strata):
        n_prefixes = -(-count // suffixes)
        rows = np.repeat(_uniform(rng, n_players, kept, n_prefixes), suffixes, axis=0)[:count]
        # The bits behind the cut are shuffled: as many of them are kept, and every such set is equally likely.
        rows[:, cut:] = rng.permuted(rows[:, cut:], axis=1)
        masks.append(rows)
        clusters.append(n_clusters + np.arange(count) // suffixes)
        n_clusters += n_prefixes
    return Sample(np.concatenate(masks), np.concatenate(clusters))


def chain_masks(
    n_players: int,
    n_masks: int,
    *,
    seed: Seed = 0,
    strata: Sequence[int] | None = None,
    cut: int | None = None,
    suffixes: int = 1,
) -> Sample:
    """Draw orders of arrival, and from each the mask of every stratum: the first k players to arrive, for each k.

    So the masks of an order lie within each other, as those of a permutation estimator do; with every size as strata
    they are all its coalitions. An order with all its masks is a cluster. With `suffixes` above 1 so many orders are
    made from one: the players before `cut` (two thirds of them unless given) keep their places and the others draw lots
    for theirs, so that the prefixes of all these orders are the same at every size, and these orders are one cluster.

    Raises `RequestError` as `two_stage_masks` does.
    """
    cut = round(_CUT * n_players) if cut is None else cut
    _check_cut(n_players, cut, suffixes)
    counts = stratum_counts(n_players, n_masks, strata)
    rng = np.random.default_rng(seed)
    most = max(count for _, count in counts)
    n_families = -(-most // suffixes)
    arrival = rng.permuted(np.tile(np.arange(n_players), (n_families, 1)), axis=1)
    arrival = np.repeat(arrival, suffixes, axis=0)[:most]
    if suffixes > 1:
        arrival[:, cut:] = rng.permuted(arrival[:, cut:], axis=1)
    masks = np.concatenate([arrival[:count] < kept for kept, count in counts])
    clusters = np.concatenate([np.arange(count) // suffixes for _, count in counts])
    return Sample(masks, clusters)


def subset_masks(n_players: int, n_masks: int, *, seed: Seed = 0, strata: Sequence[int] | None = None) -> Sample:
    """List the strata whole, one after the other, until `n_masks` are there; the last is drawn from, none twice.

    The strata are n, n − 1, n − 2, … unless given: no player removed, each one, each pair, each three. Such masks share
    nearly all they have. Each row is a cluster of its own: what is listed whole has no sampling error at all, and the
    draw from the last stratum is without replacement, which leaves a little less than independent rows would.

    Raises `RequestError` as `stratified_masks` does, and where the strata have fewer masks than asked for.
    """
    order = list(range(n_players, -1, -1)) if strata is None else list(strata)
    stratum_counts(n_players, n_masks, order)
    there = sum(comb(n_players, kept) for kept in order)
    if there < n_masks:
        raise RequestError(f"these strata hold {there} masks, not {n_masks}: ask for fewer, or give more strata")
    rng = np.random.default_rng(seed)
    parts, left = [], n_masks
    for kept in order:
        count = min(left, comb(n_players, kept))
        parts.append(_distinct(rng, n_players, kept, count))
        left -= count
        if not left:
            break
    return Sample(np.concatenate(parts), np.arange(n_masks))


SAMPLERS: dict[str, Sampler] = {
    "strata": independent_masks,
    "two-stage": two_stage_masks,
    "chains": chain_masks,
    "subsets": subset_masks,
}
"""Every sampler by its name on the command line."""


def get_sampler(name: str) -> Sampler:
    """Return the sampler called `name`. `RequestError` for an unknown one, with the nearest name and the whole list.

    Examples:
        >>> from layercoop_fast import get_sampler
        >>> sample = get_sampler("two-stage")(9, 6, seed=0, strata=[6])
        >>> sample.clusters.tolist()  # rows of one number share the players before the cut
        [0, 0, 1, 1, 2, 2]
        >>> bool((sample.masks[0, :6] == sample.masks[1, :6]).all())
        True
    """
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), SAMPLERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RequestError(f"unknown sampler {name!r}: {hint}The samplers are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _check_cut(n_players: int, cut: int, suffixes: int) -> None:
    if suffixes < 1:
        raise RequestError(f"suffixes must be at least 1 a prefix, not {suffixes}")
    if n_players >= 2 and not 1 <= cut < n_players:
        raise RequestError(f"a cut has 1 to {n_players - 1} of {n_players} players before it, not {cut}")


def _uniform(rng: np.random.Generator, n_players: int, kept: int, n_rows: int) -> Masks:
    """Rows uniform among those that keep `kept`, `bool[n_rows, n]`."""
    row = np.arange(n_players) < kept
    return rng.permuted(np.tile(row, (n_rows, 1)), axis=1)


def _distinct(rng: np.random.Generator, n_players: int, kept: int, count: int) -> Masks:
    """`count` distinct masks that keep `kept`, `bool[count, n]`, every set of this size equally likely, perhaps all."""
    total = comb(n_players, kept)
    if total <= max(_LISTED, 2 * count):
        removed = np.array(list(combinations(range(n_players), n_players - kept)), dtype=np.intp)
        if count < total:
            removed = removed[np.sort(rng.choice(total, count, replace=False))]
        masks = np.ones((count, n_players), dtype=np.bool_)
        np.put_along_axis(masks, removed.reshape(count, -1), False, axis=1)
        return masks
    masks = np.empty((0, n_players), dtype=np.bool_)
    while len(masks) < count:  # fewer than half are drawn, so repeats are few
        masks = np.concatenate([masks, _uniform(rng, n_players, kept, count)])
        first = np.unique(np.packbits(masks, axis=1), axis=0, return_index=True)[1]
        masks = masks[np.sort(first)]
    return masks[:count]
