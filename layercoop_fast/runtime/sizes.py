"""What a mask keeps of a model: parameters, and bytes of weights as the executor holds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from layercoop_fast.engine.quantised import parameters_of
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.llama.block import UnfitError, find_parts
from layercoop_fast.masks.halves import Halves

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Size:
    """Of the weights that a mask keeps, embedding and head included.

    Attributes:
        parameters: number of them.
        n_bytes: as they are held, in proportion to their number.
    """

    parameters: int
    n_bytes: int


@dataclass(frozen=True, eq=False)
class Sizes:
    """Parameters of the parts of a model.

    Attributes:
        halves: int64 [L, 2], of the attention and the MLP of each block; norms count with the attention. Blocks that
            are not llama-shaped count as a whole in the first column: their halves are not told apart.
        rest: outside the blocks.
    """

    halves: npt.NDArray[np.int64]
    rest: int

    @classmethod
    def of(cls, skeleton: Skeleton) -> Sizes:
        """Count the parameters of a model; those on the meta device, whose memory was freed, count too."""
        name = next(filter(None, map(_mlp_of, skeleton.blocks)), None)
        halves = np.zeros((skeleton.n_layers, 2), dtype=np.int64)
        for layer, block in enumerate(skeleton.blocks):
            mlp = None if name is None else getattr(block, name, None)
            halves[layer, 1] = 0 if mlp is None else parameters_of(mlp.parameters())
            halves[layer, 0] = parameters_of(block.parameters()) - halves[layer, 1]
        return cls(halves, int(parameters_of(skeleton.model.parameters()) - halves.sum()))

    def under(self, mask: Halves, held: Halves, weight_bytes: int) -> Size:
        """What a mask (uint8 [L]) keeps of a model that holds `held` (uint8 [L]) in `weight_bytes` bytes."""
        kept = self._kept(mask)
        return Size(kept, round(weight_bytes * kept / self._kept(held)))

    def _kept(self, mask: Halves) -> int:
        attention, mlp = self.halves.T
        whole = mlp == 0  # any half of such a block counts as the block
        return self.rest + int(attention[(mask & 1 > 0) | (whole & (mask > 0))].sum() + mlp[mask & 2 > 0].sum())


def _mlp_of(block: nn.Module) -> str | None:
    """The name of a llama-shaped block's MLP; None for another block, and for one whose weights are not there."""
    if any(parameter.is_meta for parameter in block.parameters()):
        return None
    try:
        down = find_parts(block, dtypes=_DTYPES, devices=_DEVICES, one_dtype=False).down
    except UnfitError:
        return None
    return next((name for name, child in block.named_children() if down in set(child.modules())), None)
