"""What a mask keeps of a model: parameters, and bytes of weights as the executor holds them."""

from __future__ import annotations

from collections.abc import Iterable
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
_DEVICES = ("cpu", "cuda", "meta")


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
        halves: int64 [L, 2], of the attention and the MLP of each block, norms included. A block that is not
            llama-shaped counts as a whole in the first column: halves of it are not told apart.
        rest: outside the blocks.
    """

    halves: npt.NDArray[np.int64]
    rest: int

    @classmethod
    def of(cls, skeleton: Skeleton) -> Sizes:
        """Count the parameters of a model; those that were let go count too."""
        halves = np.array([_halves(block) for block in skeleton.blocks], dtype=np.int64)
        return cls(halves, int(parameters_of(skeleton.model.parameters()) - halves.sum()))

    def under(self, mask: Halves, held: Halves, weight_bytes: int) -> Size:
        """What a mask (uint8 [L]) keeps of a model that holds `held` (uint8 [L]) in `weight_bytes` bytes."""
        kept = self._kept(mask)
        return Size(kept, round(weight_bytes * kept / self._kept(held)))

    def _kept(self, mask: Halves) -> int:
        attention, mlp = self.halves.T
        whole = mlp == 0  # any half of such a block counts as the block
        return self.rest + int(attention[(mask & 1 > 0) | (whole & (mask > 0))].sum() + mlp[mask & 2 > 0].sum())


def _halves(block: nn.Module) -> tuple[int, int]:
    whole = parameters_of(block.parameters())
    try:
        parts = find_parts(block, dtypes=_DTYPES, devices=_DEVICES, one_dtype=False)
    except UnfitError:
        return whole, 0
    mlp = _parameters(part.module for part in (parts.gate, parts.up)) + parameters_of(parts.down.parameters())
    mlp += sum(norm.weight.numel() for norm in (parts.mlp_norm, parts.after_mlp) if norm is not None)
    return whole - mlp, mlp


def _parameters(modules: Iterable[nn.Module]) -> int:
    """Of modules, one that is there twice counted once."""
    return sum(parameters_of(module.parameters()) for module in dict.fromkeys(modules))
