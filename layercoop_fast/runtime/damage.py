"""Weights that nothing can be computed from: NaN, infinite, or beyond what a packed format holds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves

# Magnitudes that integers with fp16 scales hold for certain: int8 reaches 127 times the largest scale, int4 keeps a
# group's smallest weight in fp16 as it is.
_LARGEST = {"int8": 8e6, "int4": 65504.0}


def find_damage(skeleton: Skeleton, held: Halves, dtype: str) -> dict[int, str]:
    """What is wrong with blocks whose weights are held and unusable, in one line that names a tensor, by block.

    Args:
        skeleton: the model; parameters on the meta device are not looked at.
        held: uint8 [L], the halves of blocks whose weights are there.
        dtype: what matrices will be packed as: "int8" and "int4" hold less than their origin; others all of it.

    Raises `RequestError` for a tensor that no mask leaves out, and where no block is left.
    """
    found: dict[int, str] = {}
    inside = f"{skeleton.blocks_path}."
    kept_by_all = (
        set() if skeleton.embedding_norm is None else {id(each) for each in skeleton.embedding_norm.parameters()}
    )
    for name, parameter in skeleton.model.named_parameters(remove_duplicate=False):
        wrong = _wrong(parameter.detach(), dtype)
        if wrong is None:
            continue
        if not name.startswith(inside) or id(parameter) in kept_by_all:
            raise RequestError(f"{name} holds {wrong}: no mask leaves it out, so the model cannot run so")
        block = int(name[len(inside) :].split(".")[0])
        found.setdefault(block, f"{name} holds {wrong}")
    if found and not (set(np.flatnonzero(held).tolist()) - set(found)):
        raise RequestError(f"{next(iter(found.values()))}, and no block without such numbers is left")
    return found


def check_mask(mask: Halves, damage: dict[int, str]) -> None:
    """Raise `RequestError` where a mask uint8 [L] keeps a block that cannot run."""
    for block, wrong in damage.items():
        if mask[block]:
            raise RequestError(f"{wrong}: block {block} cannot run, so leave it out with a mask")


_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _wrong(weights: Tensor, dtype: str) -> str | None:
    # What a library holds in a form of its own (torchao's subclasses, fp8) is its affair.
    if type(weights) is not Tensor or weights.dtype not in _PLAIN or weights.is_meta or not weights.numel():
        return None
    # NaN is both the least and the largest of what it is among.
    least, largest = (float(each) for each in torch.aminmax(weights))
    size = max(abs(least), abs(largest))
    if not math.isfinite(least) or not math.isfinite(largest):
        return "NaN or infinite numbers"
    most = _LARGEST.get(dtype, math.inf) if weights.dim() > 1 else math.inf
    return f"numbers as large as {size:.3g}, and {dtype} goes up to {most:.3g}" if size > most else None
