"""Units on a GPU: whole steps of a plan on the states where they lie in the pool, each a graph that comes back.

A plan's table of slots is on the device before its first step. A step of many states is cut into batches of a few
sizes, so that few kinds of work recur: (unit, batch size) on one pool. Before each the batch's part of the table is
copied to the place that this size's work reads it from, which is all that differs between two calls.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.kernels.rows import Product
from layercoop_fast.llama.block import UnfitError, find_parts
from layercoop_fast.llama.block_inputs import find_rope
from layercoop_fast.llama.fast_blocks import checked
from layercoop_fast.llama.gpu_block import PoolBlock
from layercoop_fast.masked.batch_width import MAX_ROWS, power_of_two_up_to
from layercoop_fast.masked.plan import Plan, Step
from layercoop_fast.masked.queues import Queue, queue_of
from layercoop_fast.masked.units import GeneralUnits, part_of
from layercoop_fast.masked.windows import Windows
from layercoop_fast.spans import COPIES, DEVICE_BLOCKS

# Results of a call lie in torch's memory and once more in that of the graphs, and both are taken in rough pieces.
COPIES_OF_RESULTS = 2.5
# How far a block in the pool may be from the block itself, as in `llama/fast_blocks.py`. A GPU's products of other
# shapes sum in another order; in float64 models' own norms are computed in fp32.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


class PoolUnits:
    """Units whose blocks have a form for states in a pool run it; those of the other blocks run as `GeneralUnits`.

    Args:
        general: the same units by the model's own modules.
        blocks: the form for the pool of each block, None where it has none.
        halves: whether units are the halves of blocks (2L) instead of whole ones (L).
        queue: of the device.
    """

    def __init__(
        self, general: GeneralUnits, blocks: Sequence[PoolBlock | None], queue: Queue, *, halves: bool
    ) -> None:
        self.general = general
        self.blocks = list(blocks)
        self.halves = halves
        self.queue = queue
        once = max((block.bytes_a_row for block in blocks if block is not None), default=0)
        self.bytes_a_row = round(COPIES_OF_RESULTS * once)
        self._widest: int | None = None
        slow = [str(layer) for layer, block in enumerate(blocks) if block is None]
        self.path = f"pool but for blocks {','.join(slow)}" if slow else "pool"
        self._tables: dict[int, Tensor] = {}
        self._pool: tuple[int, torch.Size] | None = None
        self._name = object()  # the queue is everybody's

    def on(self, windows: Windows) -> PoolUnits:
        """The same units for other windows of the same length, which have another pool."""
        return PoolUnits(self.general.on(windows), self.blocks, queue_of(windows.skeleton.device), halves=self.halves)

    @property
    def products(self) -> Sequence[frozenset[Product]]:
        """The products of each unit by the model's own modules; on a GPU they decide nothing."""
        return self.general.products

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor | None = None) -> None:
        """One unit on states [W, T, H] that need not lie in one pool, each written to its target, all positions."""
        layer, half = part_of(unit, halves=self.halves)
        block = self.blocks[layer]
        if block is None:
            self.general.run(unit, sources, targets)
            return
        states = torch.stack(list(sources))
        slots = torch.arange(len(states), dtype=torch.int32, device=states.device)
        block.run(states.flatten(1, 2), slots, slots, half)
        for state, target in zip(states, targets, strict=True):
            target.copy_(state)

    def steps(self, plan: Plan, max_rows: int = MAX_ROWS) -> Iterator[tuple[Step, Tensor]]:
        """Run a plan's units, step by step: yields each step when its states are (or will be) there, and the pool.

        The pool is [S, W, T, H]; whoever reads it does so by operations on the device's current stream. A call of a
        unit has at most `max_rows` rows, or one state.
        """
        windows = self.general.windows
        pool = windows.pool(plan.peak_states)
        self._hold(pool)
        embedding = windows.context(1).embedding[: windows.n_windows]
        width = power_of_two_up_to(max_rows // windows.ids.numel())
        table = self.queue.send(torch.from_numpy(np.stack([plan.op_src, plan.op_dst])))
        first = 0
        for step in plan.steps():
            count = len(step.src)
            if step.player < 0:
                with self.queue.timed(COPIES):
                    for target in step.dst.tolist():
                        pool[target].copy_(embedding)
            else:
                with self.queue.timed(DEVICE_BLOCKS):
                    self._run_step(step.player, pool, table[:, first : first + count], width)
            first += count
            yield step, pool

    def _run_step(self, unit: int, pool: Tensor, slots: Tensor, width: int) -> None:
        """One unit on states of the pool, up to `width` at a time; half as many from then on where memory is missing.

        A call writes states by its last operation alone, so that one that failed has changed nothing.
        """
        left = slots
        while left.shape[1]:
            size = min(width, self._widest or width, power_of_two_up_to(left.shape[1]))
            if self._ran(unit, pool, left[:, :size]):
                left = left[:, size:]
            else:
                self._widest = size // 2
                self.queue.forget()  # its memory goes too
                torch.cuda.empty_cache()

    def _ran(self, unit: int, pool: Tensor, slots: Tensor) -> bool:
        """Whether there was memory to run one unit; raises where there is none for a single state."""
        try:
            self._run_slots(unit, pool, slots)
        except torch.OutOfMemoryError:
            if slots.shape[1] == 1:
                raise
            return False  # and what the error's frames hold is free
        return True

    def _run_slots(self, unit: int, pool: Tensor, slots: Tensor) -> None:
        """One unit on states of the pool; slots: int32 [2, K], sources and targets, on the device."""
        layer, half = part_of(unit, halves=self.halves)
        block = self.blocks[layer]
        if block is None:
            states = pool[slots[0].long()]
            self.general.run(unit, list(states), list(states))
            pool.index_copy_(0, slots[1].long(), states)
            return
        size = slots.shape[1]
        if size not in self._tables:
            # Both halves begin at multiples of 16 bytes: Triton compiles a kernel of its own for those that do not.
            self._tables[size] = slots.new_empty(2, max(size, 4))
        sources, targets = self._tables[size][:, :size].copy_(slots)
        rows = pool.flatten(1, 2)
        self.queue.run((self._name, unit, size), lambda: block.run(rows, sources, targets, half))

    def _hold(self, pool: Tensor) -> None:
        """What was recorded on another pool must not run on this one."""
        held = pool.data_ptr(), pool.shape[1:]
        if held != self._pool and self._pool is not None:
            self.queue.forget()
        self._pool = held


def make_pool_units(windows: Windows, general: GeneralUnits, queue: Queue, *, halves: bool) -> PoolUnits | None:
    """Units in a pool for these windows, each block checked against the model's own; None where no block fits."""
    skeleton = windows.skeleton
    context = windows.part(0, min(2, windows.n_windows))
    proven: set[Hashable] = set()
    blocks = [
        pool_block(skeleton.block(layer), context.call(layer), skeleton.convention, proven)
        for layer in range(skeleton.n_layers)
    ]
    fitting = [block if isinstance(block, PoolBlock) and block.holds else None for block in blocks]
    return PoolUnits(general, fitting, queue, halves=halves) if any(fitting) else None


def pool_block(
    block: nn.Module, call: BlockCall, convention: Convention, proven: set[Hashable] | None = None
) -> PoolBlock | str:
    """The form for a pool of a block as it is called for a batch of windows, or why it has none, in one line.

    `proven` collects the kinds of blocks that were compared in fp32, and is shared among the blocks of a model.
    """

    def make(block: nn.Module, call: BlockCall) -> PoolBlock:
        parts = find_parts(block, dtypes=tuple(TOLERANCE), devices=("cpu", "cuda"))
        return PoolBlock(parts, find_rope(call, convention, parts))

    try:
        return checked(make, block, call, convention, TOLERANCE, set() if proven is None else proven)
    except UnfitError as reason:
        return str(reason)
