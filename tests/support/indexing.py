"""`tensor[...]`, `tensor[...] = value` and `copy_` for fake tensors of a device that torch was built without.

Torch's own ask the device's guard, which is not there; operations on fake tensors, below autograd, ask nobody.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_get, _set, _copy = Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_
_ops = torch.ops.aten


def install(patch: pytest.MonkeyPatch) -> None:
    """Use these for fake tensors of a GPU."""
    patch.setattr(Tensor, "__getitem__", getitem)
    patch.setattr(Tensor, "__setitem__", setitem)
    patch.setattr(Tensor, "copy_", copy_)


def getitem(tensor: Tensor, index: Any) -> Tensor:
    """tensor[index] of integers, slices, None and tensors of integers: [...]."""
    if not (isinstance(tensor, FakeTensor) and tensor.device.type == "cuda"):
        return _get(tensor, index)
    found, by_tensor = _narrowed(tensor, index)
    return _ops.index.Tensor(found, by_tensor) if any(each is not None for each in by_tensor) else found


def setitem(tensor: Tensor, index: Any, value: Any) -> None:
    """tensor[index] = value, [...] both."""
    if not (isinstance(tensor, FakeTensor) and tensor.device.type == "cuda"):
        _set(tensor, index, value)
        return
    found, by_tensor = _narrowed(tensor, index)
    if any(each is not None for each in by_tensor):
        _ops.index_put_(found, by_tensor, value)
    elif isinstance(value, Tensor):
        copy_(found, value)
    else:
        found.fill_(value)


def copy_(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """tensor.copy_(source), [...] both."""
    if not (isinstance(tensor, FakeTensor) and tensor.device.type == "cuda"):
        return _copy(tensor, source, non_blocking)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.copy_(tensor, source, non_blocking)


def _narrowed(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """A view by all that is no tensor, and what indexes its dimensions."""
    by_tensor: list[Tensor | None] = []
    at = 0
    for each in index if isinstance(index, tuple) else (index,):
        if isinstance(each, Tensor):
            by_tensor += [None] * (at - len(by_tensor)) + [each]
        elif each is None:
            tensor = _ops.unsqueeze(tensor, at)
        elif isinstance(each, slice):
            tensor = _ops.slice.Tensor(tensor, at, each.start, each.stop, each.step or 1)
        else:
            tensor = _ops.select.int(tensor, at, int(each))
            continue
        at += 1
    return tensor, by_tensor
