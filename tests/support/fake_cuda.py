"""A `torch.cuda` for machines without a GPU, as strict about streams, events, graphs and their memory as the real one.

    cuda = FakeCuda(); cuda.install(monkeypatch)
    graphs = DeviceGraphs(FakeCuda.DEVICE)

Tensors stay on the CPU and work is done at once, but

- a capture computes nothing that stays: memory that existed before has its old numbers when the capture ends, and what
  was made in it holds NaN until the graph is replayed; `replay` does the recorded operations on that very memory;
- a capture fails where something waits for the device, where it begins on the default stream, where a library makes its
  workspace for a stream in it (`library_call`), and where `cuda.break_captures` says so;
- memory of graphs that were all destroyed, but which a workspace still holds, may not be captured into (torch up to
  2.10), and to destroy a graph frees all workspaces (torch 2.13): a graph that used one may not be replayed then;
- a capture that failed leaves the allocator waiting for its end, until it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from replay import Tape
from torch import Tensor
from torch.utils._pytree import tree_flatten


class FakeStream:
    """A stream; `waits` counts what it was told to wait for."""

    def __init__(self) -> None:
        self.waits = 0

    def wait_stream(self, other: FakeStream) -> None:
        """Count it."""
        self.waits += 1


class FakeEvent:
    """An event: `cuda.device_seconds` pass between two of them, which are there unless `cuda.behind`."""

    cuda: FakeCuda

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, stream: FakeStream | None = None) -> None:
        """Note the device's time."""
        self.at = self.cuda.clock
        self.cuda.clock += self.cuda.device_seconds

    def query(self) -> bool:
        """Whether the device has come to it."""
        return not self.cuda.behind

    def synchronize(self) -> None:
        """Wait."""

    def elapsed_time(self, end: FakeEvent) -> float:
        """Milliseconds."""
        return 1e3 * (end.at - self.at)


class Recording(Tape):
    """Operations of a capture, and the numbers of all memory that they found there."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"):
            raise RuntimeError("operation not permitted when stream is capturing")
        for each in tree_flatten((args, kwargs or {}))[0]:
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage.data_ptr() not in self.made and storage.data_ptr() not in self.before:
                    self.before[storage.data_ptr()] = (each, _all_of(each).clone())
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            self.cuda.library_call()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for each in tree_flatten(result)[0]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self.before:
                self.made[each.untyped_storage().data_ptr()] = each
        return result

    def undo(self) -> None:
        """As if nothing had been computed."""
        with torch.inference_mode():
            for tensor, numbers in self.before.values():
                _all_of(tensor).copy_(numbers)
            for tensor in self.made.values():
                if tensor.is_floating_point():
                    _all_of(tensor).fill_(float("nan"))


def _all_of(tensor: Tensor) -> Tensor:
    """All numbers of a tensor's memory, also of what it is a view of."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


class FakeGraph:
    """A graph of a `FakeCuda`."""

    cuda: FakeCuda

    def __init__(self) -> None:
        self.tape: Recording | None = None
        self.pool: int | None = None
        self.workspaces: set[int] = set()
        self.dead = False

    def capture_begin(self, pool: int, capture_error_mode: str = "global") -> None:
        """Begin, on the current stream."""
        cuda = self.cuda
        if cuda.current is cuda.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        if pool in cuda.abandoned:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp")
        if cuda.capturing is not None or cuda.waiting_for_end:
            raise RuntimeError("the allocator believes that a capture is under way")
        self.pool, cuda.capturing = pool, self
        cuda.pools.setdefault(pool, 0)
        self.tape = Recording(cuda)
        self.tape.__enter__()

    def capture_end(self) -> None:
        """End; raises where the capture was broken, and leaves the allocator waiting then."""
        cuda = self.cuda
        assert cuda.capturing is self, "capture_end without its capture_begin"
        assert self.tape is not None
        assert self.pool is not None
        cuda.capturing = None
        self.tape.__exit__(None, None, None)
        self.tape.undo()
        if cuda.broken or cuda.break_captures:
            cuda.broken = False
            cuda.waiting_for_end.add(self.pool)
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        cuda.pools[self.pool] += 1
        cuda.captured += 1

    def replay(self) -> None:
        """Do the operations again."""
        assert self.tape is not None
        assert not self.dead
        if not self.workspaces <= self.cuda.workspaces.keys():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.cuda.replayed += 1
        with torch.inference_mode():
            self.tape.play()

    def __del__(self) -> None:
        """Destroyed: its pool has one graph less, and all workspaces are freed (torch 2.13)."""
        cuda = self.cuda
        if self.pool is not None and self.tape is not None and cuda.pools.get(self.pool, 0):
            cuda.pools[self.pool] -= 1
            if not cuda.pools[self.pool] and self.pool in cuda.workspaces.values():
                cuda.abandoned.add(self.pool)
            cuda.workspaces.clear()


class FakeCuda:
    """The state of a device; `install` puts it in the place of torch's functions.

    Attributes:
        captured, replayed, synchronised: how often.
        break_captures: whether every capture fails at its end.
        device_seconds: between two events.
        behind: whether the device has not come to the last event yet.
        waiting_for_end: pools of captures that failed, until the allocator is told.
    """

    DEVICE = torch.device("cpu")

    def __init__(self) -> None:
        self.default = FakeStream()
        self.current = self.default
        self.capturing: FakeGraph | None = None
        self.broken = self.break_captures = self.behind = False
        self.captured = self.replayed = self.synchronised = 0
        self.device_seconds = self.clock = 0.0
        self.handles = 0
        self.pools: dict[int, int] = {}
        self.abandoned: set[int] = set()
        self.waiting_for_end: set[int] = set()
        self.workspaces: dict[int, int | None] = {}
        """Of a stream (by its id): the pool that a workspace of a library lies in, None for plain memory."""

    def library_call(self) -> None:
        """What a product does on its first call on a stream: a workspace, which must not be made in a capture."""
        stream = id(self.current)
        if stream not in self.workspaces:
            self.workspaces[stream] = None if self.capturing is None else self.capturing.pool
        if self.capturing is not None:
            self.capturing.workspaces.add(stream)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        """Make a stream the current one."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, _: object) -> Iterator[None]:
        """There is one."""
        yield

    def graph_pool_handle(self) -> int:
        """A new pool."""
        self.handles += 1
        return self.handles

    def synchronize(self, _: object = None) -> None:
        """Count it; no capture may wait."""
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.synchronised += 1

    def end_allocation(self, _: int, pool: int) -> None:
        """What `torch._C._cuda_endAllocateToPool` does."""
        self.waiting_for_end.discard(pool)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put this in the place of `torch.cuda`."""
        graph = type("Graph", (FakeGraph,), {"cuda": self})
        event = type("Event", (FakeEvent,), {"cuda": self})
        for name, found in {
            "Stream": FakeStream,
            "Event": event,
            "CUDAGraph": graph,
            "stream": self.stream,
            "device": self.device,
            "current_stream": lambda _=None: self.current,
            "current_device": lambda: 0,
            "graph_pool_handle": self.graph_pool_handle,
            "synchronize": self.synchronize,
        }.items():
            patch.setattr(torch.cuda, name, found)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocation, raising=False)
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone())
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
