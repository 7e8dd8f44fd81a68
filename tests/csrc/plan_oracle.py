"""What a plan must be, said slowly: masks as tuples of kept players, slots as a dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layercoop_fast.masked.plan import EMBED, Evaluations, Plan, Step

Prefix = tuple[int, ...]
"""The kept players of a mask, or the first few of them: what names a state."""


def kept(mask: npt.NDArray[np.bool_]) -> Prefix:
    return tuple(np.flatnonzero(mask).tolist())


def prefixes(players: Prefix) -> set[Prefix]:
    """All but the empty one, which costs no layer evaluation."""
    return {players[: i + 1] for i in range(len(players))}


def distinct_masks(masks: npt.NDArray[np.bool_]) -> list[tuple[bool, ...]]:
    """In lexicographic order, player 0 first, removed before kept."""
    return sorted({tuple(mask) for mask in masks.tolist()})


def count(masks: npt.NDArray[np.bool_]) -> Evaluations:
    states: set[Prefix] = set()
    for mask in masks:
        states |= prefixes(kept(mask))
    return Evaluations(masks.size, sum(len(kept(mask)) for mask in masks), len(states), len(distinct_masks(masks)))


def states_without_recompute(masks: npt.NDArray[np.bool_]) -> int:
    """One for the mask at work, and one for each state of it from which a later mask branches, the embedding aside."""
    paths = [tuple(np.flatnonzero(mask).tolist()) for mask in distinct_masks(masks)]
    most = 0
    for i, path in enumerate(paths):
        pending = {_shared(path, later) for later in paths[i + 1 :]} - {()}
        most = max(most, 1 + len(pending))
    return most


def _shared(a: Prefix, b: Prefix) -> Prefix:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return a[:length]


@dataclass(frozen=True)
class Run:
    """What happened when a schedule was carried out."""

    computed: Counter[Prefix]
    """How often each state was computed; the embedding is not counted."""
    most_live: int
    """Slots, at most at once, with a state that was still to be read, or was just written."""


def simulate(plan: Plan, masks: npt.NDArray[np.bool_]) -> Run:
    """Carries out a schedule on prefixes in place of states, and asserts every promise that it makes about slots."""
    steps = list(plan.steps())
    wanted = [kept(masks[row]) for row in plan.unique_rows]
    states = set[Prefix]().union(*map(prefixes, wanted))
    live_before = _live_before(steps)
    slots: dict[int, Prefix] = {}
    emitted: Counter[int] = Counter()
    computed: Counter[Prefix] = Counter()
    most_live = 0
    for t, (player, src, dst, emit_mask, emit_slot) in enumerate(steps):
        assert len(src) == len(dst) > 0
        _assert_independent(src.tolist(), dst.tolist(), live_before[t])
        written: dict[int, Prefix] = {}
        for read, write in zip(src.tolist(), dst.tolist(), strict=True):
            if player == EMBED:
                assert read == -1
                written[write] = ()
                continue
            state = (*slots[read], player)
            assert state in states, "a state that no mask needs"
            computed[state] += 1
            written[write] = state
        slots |= written
        most_live = max(most_live, len(live_before[t] | written.keys()))
        for mask, slot in zip(emit_mask.tolist(), emit_slot.tolist(), strict=True):
            assert slots[slot] == wanted[mask]
            emitted[mask] += 1
    assert emitted == Counter(range(len(wanted))), "every distinct mask is emitted once"
    return Run(computed, most_live)


def _assert_independent(src: Sequence[int], dst: Sequence[int], live: set[int]) -> None:
    """A step's operations may run in any order: each writes over its own source or where nothing is still needed."""
    assert len(set(dst)) == len(dst)
    readers = Counter(src)
    for read, write in zip(src, dst, strict=True):
        if write == read:
            assert readers[read] == 1
        else:
            assert write not in live
            assert write not in readers


def _live_before(steps: Sequence[Step]) -> list[set[int]]:
    """The slots whose state, as it stands before each step, is read by that step or a later one."""
    live: set[int] = set()
    result: list[set[int]] = []
    for _, src, dst, _, emit_slot in reversed(steps):
        live = live | set(emit_slot.tolist())
        live = (live - set(dst.tolist())) | (set(src.tolist()) - {-1})
        result.append(live)
    return result[::-1]
