"""Indexing, `copy_` and random integers for fake tensors of a device that torch was built without.

Torch's own ask the device's guard, which is not there; operations on fake tensors, below autograd, ask nobody. A mode
takes their place: to replace methods of a class of torch's would leave traces in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

_ops = torch.ops.aten


class ByOperations(TorchFunctionMode):
    """While it is entered, these are done by operations where a fake tensor of a GPU comes first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randint, torch.randperm) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            size = args[2] if func is torch.randint else (args[0],)
            return torch.empty(size, dtype=torch.int64, device=kwargs["device"])
        if args and isinstance(args[0], FakeTensor) and args[0].device.type == "cuda":
            if func is Tensor.__getitem__:
                return _getitem(*args)
            if func is Tensor.__setitem__:
                return _setitem(*args)
            if func is Tensor.copy_:
                return _copy(*args, **kwargs)
        return func(*args, **kwargs)


def _getitem(tensor: Tensor, index: Any) -> Tensor:
    """tensor[index] of integers, slices, None and tensors of integers."""
    found, by_tensor = _narrowed(tensor, index)
    return _ops.index.Tensor(found, by_tensor) if any(each is not None for each in by_tensor) else found


def _setitem(tensor: Tensor, index: Any, value: Any) -> None:
    """tensor[index] = value."""
    found, by_tensor = _narrowed(tensor, index)
    if any(each is not None for each in by_tensor):
        _ops.index_put_(found, by_tensor, value)
    elif isinstance(value, Tensor):
        _copy(found, value)
    else:
        found.fill_(value)


def _copy(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
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
