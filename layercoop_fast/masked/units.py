"""How a game's units are computed: by the model's own modules, or by fast blocks where those fit.

The scheduler (`masked/forward.py`) hands a unit a batch of stored states, each where it lies in the pool, and the slots
for what comes out. The result of a state does not depend on the other states of the batch, on either path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layercoop_fast.engine.skeleton import Context
from layercoop_fast.kernels.rows import Product
from layercoop_fast.llama.block import Half
from layercoop_fast.llama.cpu_block import FastBlock
from layercoop_fast.masked.windows import Windows
from layercoop_fast.spans import COPIES, HF_BLOCKS, timed


class Units(Protocol):
    """How a plan runs units on states."""

    path: str
    """Name of the numerics, for fingerprints: worths of different paths are different numbers."""
    bytes_a_row: int
    """Bytes of activations that a row (token) of a call takes; 0 where that is the model's own affair."""

    @property
    def products(self) -> Sequence[frozenset[Product]]:
        """The products with weights that each unit computes for rows; those within experts are not counted."""

    def on(self, windows: Windows) -> Units:
        """The same units for other windows of the same length; nothing is checked again.

        Where they are trees, or the units are no pool on a GPU, the windows may also be shorter.
        """

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor | None = None) -> None:
        """One unit on states [W, T, H], each written to its target; a target may be its own source.

        With `rows` (int64 [S]) only these positions of each window need be written: the state is a mask's last, and
        only they are scored.
        """


class GeneralUnits:
    """Units of any model, computed by its own modules.

    Args:
        windows: of the game.
        run_unit: one unit on a batch, [B, T, H] → [B, T, H], in a context of that batch.
        halves: whether units are the halves of blocks (2L) instead of whole ones (L).
    """

    path = "hf"
    bytes_a_row = 0

    def __init__(
        self,
        windows: Windows,
        run_unit: Callable[[Context, int, Tensor], Tensor] = Context.run,
        *,
        halves: bool = False,
    ) -> None:
        self.windows = windows
        self.run_unit = run_unit
        self.halves = halves

    def on(self, windows: Windows) -> GeneralUnits:
        """The same units for other windows."""
        return GeneralUnits(windows, self.run_unit, halves=self.halves)

    @cached_property
    def products(self) -> Sequence[frozenset[Product]]:
        """The products of each unit; halves have those of their whole block.

        Found once: every plan asks, and a model has many modules.
        """
        blocks = [_products(block) for block in self.windows.skeleton.blocks]
        return [made for made in blocks for _ in range(2 if self.halves else 1)]

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor | None = None) -> None:
        """Gather the states [W, T, H], run the unit once, and write its results back at all positions."""
        context = self.windows.context(len(sources))
        with timed(COPIES):
            self._run(context, unit, sources, targets)

    def _run(self, context: Context, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        # Gathered into a fresh tensor: a block may write into its input, and a stored state must survive that.
        batch = torch.cat(list(sources))
        padding = context.ids.shape[0] - batch.shape[0]
        if padding:
            batch = torch.cat([batch, batch[:1].expand(padding, -1, -1)])
        with timed(HF_BLOCKS):
            out = self.run_unit(context, unit, batch)
        for index, target in enumerate(targets):
            target.copy_(out[index * len(target) : (index + 1) * len(target)])


class FastUnits:
    """Units whose blocks have a fast form run it; those of the other blocks run as `GeneralUnits`.

    Args:
        general: the same units by the model's own modules.
        blocks: the fast form of each block, None where it has none.
        halves: whether units are the halves of blocks (2L) instead of whole ones (L).
    """

    def __init__(self, general: GeneralUnits, blocks: Sequence[FastBlock | None], *, halves: bool) -> None:
        self.general = general
        self.blocks = list(blocks)
        self.halves = halves
        self.bytes_a_row = max((block.bytes_a_row for block in blocks if block is not None), default=0)
        slow = [str(layer) for layer, block in enumerate(blocks) if block is None]
        self.path = f"fast but for blocks {','.join(slow)}" if slow else "fast"

    def on(self, windows: Windows) -> FastUnits:
        """The same units for other windows, fast blocks shared.

        Windows that are trees, or shorter ones: the blocks are for these from now on, and for the earlier ones no more.
        """
        own = self.general.windows
        if windows.positions is not None or windows.ids.shape[1] != own.ids.shape[1]:
            context = windows.context(1)
            for layer, block in enumerate(self.blocks):
                if block is not None:
                    block.extend(context.call(layer), windows.skeleton.convention, windows.positions)
        return FastUnits(self.general.on(windows), self.blocks, halves=self.halves)

    @cached_property
    def products(self) -> Sequence[frozenset[Product]]:
        """The products of each unit; those of some rows too where not all positions are scored."""
        found, some_rows = list(self.general.products), self.general.windows.score_every > 1
        for unit in range(len(found)):
            layer, half = part_of(unit, halves=self.halves)
            block = self.blocks[layer]
            if block is not None:
                found[unit] = block.products(half, some_rows=some_rows)
        return found

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor | None = None) -> None:
        """Run the unit on the states [W, T, H] where they lie."""
        layer, half = part_of(unit, halves=self.halves)
        block = self.blocks[layer]
        if block is None:
            self.general.run(unit, sources, targets)
            return
        self.general.windows.skeleton.block(layer)  # its weights may have to be read first
        block.run(sources, targets, half, rows)


def part_of(unit: int, *, halves: bool) -> tuple[int, Half | None]:
    """A unit's layer, and which half of it the unit is where units are halves."""
    if not halves:
        return unit, None
    return unit // 2, "mlp" if unit % 2 else "attn"


def _products(block: nn.Module) -> frozenset[Product]:
    """The products of the linear maps of a block, quantised ones included."""
    found: set[Product] = set()
    for module in block.modules():
        terms, columns = ("nx", "nf") if isinstance(module, Conv1D) else ("in_features", "out_features")
        shape = getattr(module, terms, None), getattr(module, columns, None)
        if isinstance(shape[0], int) and isinstance(shape[1], int):
            found.add((shape[0], shape[1]))
    return frozenset(found)
