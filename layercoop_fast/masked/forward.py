"""Masked forward passes along a plan: every distinct kept prefix is computed once, stored, and shared.

`run_plan` walks the plan's schedule over a pool of stored states and hands every mask's final state to a scorer. What a
mask scores does not depend on the other masks, their order, the memory budget or the batch width: the same blocks run
on the same numbers. On the CPU that holds bit for bit, for dense blocks: torch computes a row of a product alike
however many rows there are, from some number of rows on (`kernels/rows.py`), and batches are made so that no number
shows it (`masked/batch_width.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.batch_width import MAX_ROWS, batch_width, batches, scored_width
from layercoop_fast.masked.plan import Plan, last_states, layer_visits
from layercoop_fast.masked.pool_units import PoolUnits
from layercoop_fast.masked.units import GeneralUnits, Units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.spans import COPIES, DEVICE_HEAD, HEAD_REST, timed
from layercoop_fast.system import machine

RunPlayer: TypeAlias = Callable[[int, Sequence[Tensor], Sequence[Tensor], Tensor | None], None]
"""`Units.run`."""

# This few states have a budget to themselves.
_STATES_ALONE = 8


def run_plan(
    windows: Windows,
    plan: Plan,
    score: Callable[[int, Tensor], None],
    *,
    units: Units | None = None,
    max_rows: int = MAX_ROWS,
    on_progress: Callable[[int], None] | None = None,
    run: RunPlayer | None = None,
) -> None:
    """Run a plan and call `score(mask_number, state)` for each of its unique masks, `state` being [W, T, H].

    Args:
        windows: the tokens, and the model they are for.
        plan: its players are the units that `units` runs.
        score: must not keep the state; its slot is reused.
        units: how a unit is run; by default whole layers by the model's own modules.
        max_rows: the most rows (tokens) of one call of a unit, where that is more than one state.
        on_progress: called with the number of unit evaluations done since its last call.
        run: as `units.run`, for a plan whose players are more than the units, such as units with several weights. The
            units are then no pool on a GPU.
    """
    units = units or GeneralUnits(windows)
    with torch.inference_mode():
        if isinstance(units, PoolUnits):
            _run_in_pool(plan, score, units, max_rows, on_progress)
            return
        embedding = windows.context(1).embedding[: windows.n_windows]
        slots = list(windows.pool(plan.peak_states))
        width = batch_width(windows, units, slots, plan.scheduled, max_rows)
        if run is None:
            run = units.run
            windows.skeleton.expect(layer_visits(plan, windows.skeleton.n_layers)[0].tolist())
        # A state that is scored and never read again is needed at the scored positions only.
        narrow = scored_width(windows, units, slots, width) if windows.score_every > 1 and slots else 0
        last = last_states(plan) if narrow else np.zeros(plan.n_unique, dtype=np.bool_)
        done = 0
        for unit, sources, targets, masks, ends in plan.steps():
            if unit < 0:
                with timed(COPIES):
                    for target in targets.tolist():
                        slots[target].copy_(embedding)
            else:
                ending = np.isin(targets, ends[last[done : done + len(ends)]])
                for rows, some, widest in ((None, ~ending, width), (windows.scored, ending, narrow)):
                    pairs = list(zip(sources[some].tolist(), targets[some].tolist(), strict=True))
                    for part in batches(len(pairs), widest):
                        batch = pairs[part]
                        run(unit, [slots[i] for i, _ in batch], [slots[j] for _, j in batch], rows)
                        if on_progress is not None:
                            on_progress(len(batch))
            done += len(ends)
            for mask, slot in zip(masks.tolist(), ends.tolist(), strict=True):
                with timed(HEAD_REST):
                    score(mask, slots[slot])


def _run_in_pool(
    plan: Plan,
    score: Callable[[int, Tensor], None],
    units: PoolUnits,
    max_rows: int,
    on_progress: Callable[[int], None] | None,
) -> None:
    """As `run_plan`, the states staying where they lie on the device."""
    for step, pool in units.steps(plan, max_rows):
        if on_progress is not None and step.player >= 0:
            on_progress(len(step.src))
        for mask, slot in zip(step.emit_mask.tolist(), step.emit_slot.tolist(), strict=True):
            with units.queue.timed(DEVICE_HEAD):
                score(mask, pool[slot])


def states_within(windows: Windows, memory: int) -> int:
    """How many states fit into `memory` bytes.

    Raises `RequestError` when not even one does, with the smallest budget that works.
    """
    states = memory // windows.state_bytes
    if states < 1:
        raise RequestError(
            f"a memory budget of {memory} bytes holds no stored state: the smallest that works is "
            f"{windows.state_bytes} bytes (one state of {' x '.join(map(str, windows.state_shape))} numbers)"
        )
    return states


def split_memory(windows: Windows, units: Units, memory: int) -> tuple[int, int]:
    """How many states `memory` bytes hold next to the activations of one call, and how many rows that call may have.

    Activations get a quarter at most, though one state's in any case; states get the rest. A budget of 8 states or
    fewer holds them alone: so few are worth more than the bytes are (the published strata need 7).

    Raises `RequestError` when not even one state fits.
    """
    states = states_within(windows, memory)
    one = windows.ids.numel()
    rows = min(MAX_ROWS, memory // 4 // units.bytes_a_row) if units.bytes_a_row else MAX_ROWS
    rows = max(rows, one)
    with_activations = (memory - rows * units.bytes_a_row) // windows.state_bytes
    return max(min(_STATES_ALONE, states), with_activations), rows


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given; a clock read before that says nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free for stored states on a device now; memory that torch holds and nobody uses is free."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return machine.free_bytes()
