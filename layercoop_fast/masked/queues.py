"""What the executor asks of a device besides tensors: tables sent ahead, work repeated, results fetched later, spans.

    queue = queue_of(device)
    table = queue.send(host_table)                        # copied while work runs, there for the next work
    queue.run((owner, 3, 8), lambda: block.run(...))      # the same work each time a key is used
    fetched = queue.fetch(losses)                         # begins to copy; fetched() waits

On a GPU these are a second stream, CUDA graphs (on ROCm HIP's), events and pinned memory; elsewhere the plain calls, so
that the executor is one piece of code, and is tested where there is no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from layercoop_fast.masked.graphs import DeviceGraphs, new_event, new_stream
from layercoop_fast.spans import timed, watching

if TYPE_CHECKING:
    from collections.abc import Iterator


class Queue(Protocol):
    """Work for a device, in order."""

    def send(self, table: Tensor) -> Tensor:
        """A copy of a host tensor (any shape [...] and dtype) on the device, for work that is queued from now on."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do work that is the same for a key each time: the same operations on the same memory, whatever lies there."""

    def forget(self) -> None:
        """Treat all work as new: some of its memory belongs to something else now."""

    def fetch(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to copy values (any shape [...] and dtype) to the host; the result waits for them and returns them."""

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Count the time that the device takes for the block under that name, where `Spans` watch."""

    def wait(self) -> None:
        """Wait until all is done."""


class PlainQueue:
    """Everything at once, in the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, table: Tensor) -> Tensor:
        """A copy, [...] as `table`."""
        return table.to(self.device, copy=True)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do the work."""
        work()

    def forget(self) -> None:
        """Nothing is known."""

    def fetch(self, values: Tensor) -> Callable[[], Tensor]:
        """Copied at once, [...] as `values`."""
        copy = values.to("cpu", copy=True)
        return lambda: copy

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """The host's time."""
        with timed(name):
            yield

    def wait(self) -> None:
        """All is done."""


class CudaQueue:
    """A GPU's current stream, a second one for tables, and the graphs of the device (`graphs.py`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs = DeviceGraphs(device)
        with torch.cuda.device(device):
            self._copies = new_stream()
        self._origin: tuple[torch.cuda.Event, float] | None = None

    def send(self, table: Tensor) -> Tensor:
        """Copied, [...], from pinned memory on the second stream; the first waits for it on the device, not here."""
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            sent = table.pin_memory().to(self.device, non_blocking=True)
        current.wait_stream(self._copies)
        sent.record_stream(current)
        return sent

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run the first calls plainly; record one in a graph where launches are what it waits for, and launch that."""
        self.graphs.run(key, work)

    def forget(self) -> None:
        """Drop the graphs of the device, once none of them runs."""
        self.graphs.forget()

    def fetch(self, values: Tensor) -> Callable[[], Tensor]:
        """Copied, [...], into pinned memory in the stream's order; only who asks for the values waits."""
        copy = torch.empty_like(values, device="cpu").pin_memory()
        copy.copy_(values, non_blocking=True)
        there = new_event()
        there.record(torch.cuda.current_stream(self.device))

        def wait() -> Tensor:
            there.synchronize()
            return copy

        return wait

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Between two events of the stream; read when the spans are left, or after some thousand."""
        spans = watching()
        if spans is None:
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self._origin is None:
            origin = new_event()
            origin.record(stream)
            origin.synchronize()
            self._origin = origin, time.perf_counter()
        since, at = self._origin
        begin, end = new_event(), new_event()
        begin.record(stream)
        try:
            yield
        finally:
            end.record(stream)

            def measured() -> tuple[float, float]:
                end.synchronize()
                return at + since.elapsed_time(begin) / 1e3, begin.elapsed_time(end) / 1e3

            spans.add_later(name, measured)

    def wait(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.device)


def queue_of(device: torch.device) -> Queue:
    """The queue for a device: on a GPU one for the whole process, so that keys must say whose work they are."""
    if device.type != "cuda":
        return PlainQueue(device)
    return _queue_of_gpu(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _queue_of_gpu(index: int) -> CudaQueue:
    return CudaQueue(torch.device("cuda", index))
