"""A queue that repeats recorded operations as a CUDA graph does: on the same memory, whatever the code would do now."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from layercoop_fast.masked.queues import PlainQueue

# What makes the host wait for a device, which no capture allows.
_WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


class Tape(TorchDispatchMode):
    """Operations with their very tensors, to be done again."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _WAITING, f"{name} makes the host wait for the device"
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        """Do them again; every result comes to lie where it lay."""
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class ReplayQueue(PlainQueue):
    """Records the second call of a key and plays the tape from the third on."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.tapes: dict[Hashable, Tape | None] = {}
        self.played = 0
        self.forgotten = 0

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """As a graph is: plain, recorded, replayed."""
        if key not in self.tapes:
            self.tapes[key] = None
            work()
            return
        tape = self.tapes[key]
        if tape is None:
            self.tapes[key] = tape = Tape()
            with tape:
                work()
            return
        tape.play()
        self.played += 1

    def forget(self) -> None:
        """Drop the tapes."""
        self.forgotten += bool(self.tapes)
        self.tapes.clear()
