"""Plans: which layer runs on which stored state, so that masks share the prefixes they have in common.

A *state* belongs to a kept prefix of a mask: the empty one is the embedding, (0, 2) the state after players 0 and 2.
Masks that begin alike share states, and each distinct prefix need be computed only once. A plan is that computation as
a list of steps over numbered *slots*, of which at most `max_states` hold a state at any time:

    plan = build_plan(masks, max_states=16)
    worths = np.empty(plan.n_unique)
    for player, src, dst, emit_mask, emit_slot in plan.steps():
        slots[dst] = embedding if player == EMBED else block[player](slots[src])
        worths[emit_mask] = score(slots[emit_slot])
    worths_of_rows = worths[plan.inverse]

The planning itself is C++ (csrc/plan.h says how).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layercoop_fast import _C
from layercoop_fast.errors import RequestError

EMBED = -1
"""The player of a step that writes the embedding; its sources are -1 too."""


class Evaluations(NamedTuple):
    """Layer evaluations of three ways to evaluate the same masks."""

    naive: int
    """Every player for every mask."""
    skip: int
    """The kept players of every mask."""
    plan: int
    """The distinct non-empty kept prefixes: the floor for exact evaluation."""
    unique: int
    """How many of the masks are distinct."""


class Step(NamedTuple):
    """One player applied to K states, then E masks complete. The arrays are read-only views."""

    player: int
    """The player, or EMBED."""
    src: npt.NDArray[np.int32]
    """[K] slots to read; -1 for EMBED."""
    dst: npt.NDArray[np.int32]
    """[K] slots to write: each its own source, or a slot that held nothing when the step began."""
    emit_mask: npt.NDArray[np.int64]
    """[E] distinct masks (indices of `Plan.unique_rows`) now complete, to be scored before the next step."""
    emit_slot: npt.NDArray[np.int32]
    """[E] the slots that hold them."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule for masks bool[n_masks, n_players]; made by `build_plan`. All arrays are read-only."""

    n_masks: int
    n_players: int
    n_unique: int
    """Distinct masks. They are numbered in lexicographic order: player 0 first, removed before kept."""
    naive: int
    """Layer evaluations if every player ran for every mask."""
    skip: int
    """Layer evaluations if every mask ran its kept players."""
    plan: int
    """Distinct non-empty kept prefixes: the fewest layer evaluations possible."""
    scheduled: int
    """Layer evaluations of this schedule: `plan`, and what the budget forces to be computed again."""
    max_states: int
    """The budget: slots that may hold a state at once."""
    peak_states: int
    """Slots that this schedule uses, numbered from 0."""
    states_without_recompute: int
    """A budget of this many slots is enough to compute every prefix once; larger ones make wider steps."""
    unique_rows: npt.NDArray[np.int64]
    """[n_unique] a row of `masks` for each distinct mask: `masks[unique_rows]` are the distinct masks."""
    inverse: npt.NDArray[np.int64]
    """[n_masks] the distinct mask of each row of `masks`."""
    step_player: npt.NDArray[np.int32]
    """[T] player of each step, or EMBED."""
    op_offsets: npt.NDArray[np.int64]
    """[T + 1] the operations of step t are op_offsets[t] .. op_offsets[t + 1]."""
    op_src: npt.NDArray[np.int32]
    """[N] slot that each operation reads."""
    op_dst: npt.NDArray[np.int32]
    """[N] slot that each operation writes."""
    emit_offsets: npt.NDArray[np.int64]
    """[T + 1] the masks complete after step t are emit_offsets[t] .. emit_offsets[t + 1]."""
    emit_mask: npt.NDArray[np.int64]
    """[n_unique] distinct masks in the order in which they are complete."""
    emit_slot: npt.NDArray[np.int32]
    """[n_unique] the slot that holds each."""

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return len(self.step_player)

    @property
    def evaluations(self) -> Evaluations:
        """The counts as `count_evaluations` gives them."""
        return Evaluations(self.naive, self.skip, self.plan, self.n_unique)

    def steps(self) -> Iterator[Step]:
        """Yield the steps in order. A step's operations may run in any order and in any batches."""
        ops = self.op_offsets.tolist()
        emits = self.emit_offsets.tolist()
        for t, player in enumerate(self.step_player.tolist()):
            op = slice(ops[t], ops[t + 1])
            emit = slice(emits[t], emits[t + 1])
            yield Step(player, self.op_src[op], self.op_dst[op], self.emit_mask[emit], self.emit_slot[emit])


def last_states(plan: Plan) -> npt.NDArray[np.bool_]:
    """For each entry of `plan.emit_slot`, bool [n_unique]: whether its state is read by no later step.

    Such a state is needed for its mask's score alone, not as a prefix of other masks.
    """
    n_steps = plan.n_steps
    step = np.repeat(np.arange(n_steps), np.diff(plan.op_offsets))
    reads = plan.op_src >= 0
    read = np.sort(plan.op_src[reads].astype(np.int64) * n_steps + step[reads])
    elsewhere = plan.op_src != plan.op_dst  # what is written from another slot makes an end of what stood there
    written = np.sort(plan.op_dst[elsewhere].astype(np.int64) * n_steps + step[elsewhere])
    emitted = plan.emit_slot.astype(np.int64) * n_steps + np.repeat(np.arange(n_steps), np.diff(plan.emit_offsets))
    next_read = _next(read, emitted, n_steps)
    return np.isinf(next_read) | (next_read > _next(written, emitted, n_steps))


def layer_visits(plan: Plan, n_layers: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The layers that a plan goes through in order, int64 [V], and which of these visits each step belongs to, [T].

    Steps on one layer that follow each other are one visit; a step that embeds belongs to the visit before it. The
    plan's players are layers, or as many units of each (halves), one layer's after the other's.
    """
    runs = np.flatnonzero(plan.step_player >= 0)
    layers = plan.step_player[runs].astype(np.int64) * n_layers // plan.n_players
    begins = np.append(np.ones(min(len(layers), 1), dtype=np.bool_), layers[1:] != layers[:-1])
    new = np.zeros(plan.n_steps, dtype=np.int64)
    new[runs[begins]] = 1
    return layers[begins], np.maximum(np.cumsum(new) - 1, 0)


def _next(events: npt.NDArray[np.int64], after: npt.NDArray[np.int64], n_steps: int) -> npt.NDArray[np.float64]:
    """The step of the first event (slot · n_steps + step, sorted) in the same slot after each of `after`."""
    padded = np.append(events, np.iinfo(np.int64).max)
    found = padded[np.searchsorted(events, after, side="right")]
    return np.where(found // n_steps == after // n_steps, (found % n_steps).astype(np.float64), np.inf)


_FIELDS = tuple(Plan.__dataclass_fields__)


def build_plan(masks: npt.NDArray[np.bool_], max_states: int | None = None) -> Plan:
    """Plan the evaluation of masks bool[M, n] with at most `max_states` stored states (None: as many as are of use).

    Any budget from 1 works; below `Plan.states_without_recompute` some states are computed more than once. No masks
    make an empty plan.

    Raises:
        RequestError: masks are not bool[M, n] with 1 <= n <= 512, or max_states < 1.
    """
    n_masks, n_players = _shape(masks)
    if max_states is None:
        max_states = max(n_masks, 1)  # no more states are ever of use
    if max_states < 1:
        raise RequestError(f"max_states: {max_states} is too few; a plan needs room for at least 1 state")
    core = _C.Plan(_C.pack_masks(np.ascontiguousarray(masks)), n_players, min(max_states, 2**31))
    return Plan(**{name: getattr(core, name) for name in _FIELDS})


def count_evaluations(masks: npt.NDArray[np.bool_]) -> Evaluations:
    """Count layer evaluations for masks bool[M, n], without making a schedule.

    Raises:
        RequestError: masks are not bool[M, n] with 1 <= n <= 512.
    """
    _, n_players = _shape(masks)
    return Evaluations(*_C.trie_counts(_C.pack_masks(np.ascontiguousarray(masks)), n_players))


def _shape(masks: Any) -> tuple[int, int]:
    """Return the shape of a good array of masks. Callers outside the type checker pass what they like, hence `Any`."""
    if not isinstance(masks, np.ndarray):
        raise RequestError(f"masks: expected a numpy array bool[M, n], got {type(masks).__name__}")
    if masks.dtype != np.bool_:
        raise RequestError(f"masks: expected dtype bool (True = kept), got {masks.dtype}")
    if masks.ndim != 2:
        raise RequestError(f"masks: expected 2 dimensions [M, n], got {masks.ndim}")
    n_masks, n_players = masks.shape
    if not 1 <= n_players <= _C.MAX_PLAYERS:
        raise RequestError(f"masks: expected 1 to {_C.MAX_PLAYERS} players (columns), got {n_players}")
    return n_masks, n_players
