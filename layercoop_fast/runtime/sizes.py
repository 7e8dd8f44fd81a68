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
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Size:
    """Of the weights that a mask keeps, embedding and head included.

    Attributes:
        parameters: number of them.
        n_bytes: as they are held; int4 blocks, for example, lie between an int8 embedding and head.
    """

    parameters: int
    n_bytes: int


@dataclass(frozen=True, eq=False)
class Sizes:
    """Parameters of the parts of a model, and their bytes in the checkpoint's own tensors.

    Attributes:
        halves: int64 [L, 2], of the attention and the MLP of each block; norms count with the attention. Blocks that
            are not llama-shaped count as a whole in the first column: their halves are not told apart.
        rest: outside the blocks.
        half_bytes: int64 [L, 2], bytes of what `halves` counts.
    """

    halves: npt.NDArray[np.int64]
    rest: int
    half_bytes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, skeleton: Skeleton) -> Sizes:
        """Count the parameters of a model; those on the meta device, whose memory was freed, count too."""
        name = next(filter(None, map(_mlp_of, skeleton.blocks)), None)
        halves = np.zeros((skeleton.n_layers, 2), dtype=np.int64)
        half_bytes = np.zeros((skeleton.n_layers, 2), dtype=np.int64)
        for layer, block in enumerate(skeleton.blocks):
            mlp = None if name is None else getattr(block, name, None)
            for found, count in ((halves, parameters_of), (half_bytes, _bytes_of)):
                found[layer, 1] = 0 if mlp is None else count(mlp.parameters())
                found[layer, 0] = count(block.parameters()) - found[layer, 1]
        return cls(halves, int(parameters_of(skeleton.model.parameters()) - halves.sum()), half_bytes)

    def under(
        self, mask: Halves, held: Halves, weight_bytes: int, half_bytes: npt.NDArray[np.int64] | None = None
    ) -> Size:
        """What a mask (uint8 [L]) keeps of a model that holds `held` (uint8 [L]) in `weight_bytes` bytes.

        `half_bytes` int64 [L, 2] is what halves take where the executor packs them; None: their own tensors.
        """
        half_bytes = self.half_bytes if half_bytes is None else half_bytes
        unused = self._sum(half_bytes, held) - self._sum(half_bytes, mask)
        return Size(self.rest + self._sum(self.halves, mask), weight_bytes - unused)

    def _sum(self, parts: npt.NDArray[np.int64], mask: Halves) -> int:
        attention, mlp = parts.T
        whole = self.halves[:, 1] == 0  # any half of such a block counts as the block
        first = (mask & 1 > 0) | (whole & (mask > 0))
        second = (mask & 2 > 0) | (whole & (mask > 0))
        return int(attention[first].sum() + mlp[second].sum())


def _bytes_of(parameters: Iterable[nn.Parameter]) -> int:
    """What tensors take; none where they were let go of."""
    return sum(each.numel() * each.element_size() for each in parameters if not each.is_meta)


def _mlp_of(block: nn.Module) -> str | None:
    """The name of a llama-shaped block's MLP; None for another block, and for one whose weights are not there."""
    if any(parameter.is_meta for parameter in block.parameters()):
        return None
    try:
        down = find_parts(block, dtypes=_DTYPES, devices=_DEVICES, one_dtype=False).down
    except UnfitError:
        return None
    return next((name for name, child in block.named_children() if down in set(child.modules())), None)
