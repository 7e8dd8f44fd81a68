"""The graphs of a GPU: work that comes back with the same key is captured once and launched whole from then on.

    graphs = DeviceGraphs(device)
    graphs.run(key, work)      # the first two calls plainly, a capture, replays
    graphs.forget()            # some memory belongs to something else now: all graphs of the device go

There is one set of graphs a device and process. Graphs share the memory of their intermediate results, since one runs
after the other; and to destroy some of them makes torch 2.13 free workspaces of cuBLAS that others still point to. So
all go at once, and those made afterwards get memory of their own: what a workspace keeps alive is not touched again.

Before the first capture a device is asked whether it captures, forgets and captures again with right results. Where it
does not, and where any capture fails, work stays plain: that costs what launching takes, and no run ends for it.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from layercoop_fast.files import reason

# The first call compiles kernels; the second makes libraries choose theirs and, as it runs on the stream that captures,
# take their workspaces for that stream from plain memory. No capture may do either.
PLAIN_CALLS = 2
# Work is captured where the device takes less than this many times what the host needs to launch it.
LAUNCH_BOUND = 2.0
# More graphs than this, and all are dropped: a decoding step of 32 blocks has some 500 nodes.
MOST_GRAPHS = 4096


@dataclass
class _Plain:
    """Work that is not captured yet.

    Attributes:
        calls: done.
        host: seconds that the second call took the host.
        begin, end: events of the device around that call.
        wide: whether launches are known not to be what it waits for.
    """

    calls: int = 0
    host: float = 0.0
    begin: torch.cuda.Event | None = None
    end: torch.cuda.Event | None = None
    wide: bool = False


class DeviceGraphs:
    """The graphs of one device; `queues.py` has one a device. Threads take turns.

    Args:
        device: a GPU.
        most: graphs that are held.
    """

    def __init__(self, device: torch.device, most: int = MOST_GRAPHS) -> None:
        self.device = device
        self.most = most
        self.why_off: str | None = None
        """Why nothing is captured, in one line; None where graphs work."""
        self._lock = threading.RLock()
        self._checked = False
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._plain: dict[Hashable, _Plain] = {}
        with torch.cuda.device(device):
            self._captures = new_stream()
            self._memory = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do work: the same operations on the same memory each time the key comes, and nothing waits for the device.

        Raises what `work` raises; a capture that fails for want of memory ends the call too.
        """
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None and self.why_off is None:
                self.check()  # here, as it makes all work new
                plain = self._plain.setdefault(key, _Plain())
                plain.calls += 1
                if plain.calls == PLAIN_CALLS:
                    self._aside(plain, work)
                    return
                if plain.calls > PLAIN_CALLS and self.why_off is None and self._launch_bound(plain):
                    graph = self._captured(key, work)
            if graph is None:
                work()
            else:
                graph.replay()

    def forget(self) -> None:
        """Drop all graphs, once none of them runs. All work is new."""
        with self._lock:
            if self._graphs:
                torch.cuda.synchronize(self.device)
                self._graphs.clear()
                self._memory = torch.cuda.graph_pool_handle()
            self._plain.clear()

    def check(self) -> str | None:
        """Capture a product, forget it, and capture another: why graphs are off then; None where both were right."""
        with self._lock:
            if self._checked or self.why_off is not None:
                return self.why_off
            self._checked = True
            # Eighths: products of these are exact in fp32 and in TF32.
            matrix = (torch.arange(64 * 64, device=self.device) % 7).view(64, 64).to(torch.float32) / 8
            expected = matrix @ matrix
            out = torch.zeros_like(matrix)

            def work() -> None:
                out.copy_(matrix @ matrix)

            self._aside(_Plain(), work)
            for _ in range(2):
                graph = self._captured("check", work)
                out.zero_()
                if graph is None:
                    break
                graph.replay()
                del graph  # before the next one is captured, not after it
                if not torch.equal(out, expected):
                    self._turn_off("a replayed product was not the product")
                    break
                self.forget()
            return self.why_off

    def _aside(self, plain: _Plain, work: Callable[[], None]) -> None:
        """Do work on the stream of captures, and note what it took."""
        current = torch.cuda.current_stream(self.device)
        self._captures.wait_stream(current)
        with torch.cuda.device(self.device), torch.cuda.stream(self._captures):
            plain.begin, plain.end = new_event(), new_event()
            plain.begin.record(self._captures)
            started = time.perf_counter()
            work()
            plain.host = time.perf_counter() - started
            plain.end.record(self._captures)
        current.wait_stream(self._captures)

    def _launch_bound(self, plain: _Plain) -> bool:
        """Whether launching is what this work waits for. Where the device has not come to it yet it is not."""
        if plain.begin is not None and plain.end is not None:
            if not plain.end.query():  # type: ignore[no-untyped-call]
                return False
            plain.wide = plain.begin.elapsed_time(plain.end) / 1e3 >= LAUNCH_BOUND * plain.host
            plain.begin = plain.end = None
        return not plain.wide

    def _captured(self, key: Hashable, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Record work, which does not run yet; None where that fails, and graphs are off then."""
        if len(self._graphs) >= self.most:
            self.forget()
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        self._captures.wait_stream(current)
        try:
            # `torch.cuda.graph` would wait for the device and empty both of torch's caches, each time.
            with torch.cuda.device(self.device), torch.cuda.stream(self._captures):
                graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
                try:
                    work()
                    graph.capture_end()
                except BaseException:
                    self._abandon(graph)
                    raise
        except torch.OutOfMemoryError:
            self._start_afresh()
            raise
        except Exception as error:  # the work itself raises again when it is done plainly
            self._turn_off(reason(error))
            return None
        current.wait_stream(self._captures)
        self._graphs[key] = graph
        self._plain.pop(key, None)
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that failed, also for the allocator: torch leaves it waiting for the end in some versions."""
        with suppress(Exception):
            graph.capture_end()
        end: Any = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with suppress(Exception):
                end(torch.cuda.current_device(), self._memory)

    def _start_afresh(self) -> None:
        """No graph, and another stream and memory than those of a capture that failed."""
        with torch.cuda.device(self.device):
            self._captures = new_stream()
        self.forget()
        self._memory = torch.cuda.graph_pool_handle()

    def _turn_off(self, why: str) -> None:
        self.why_off = why
        self._start_afresh()
        # Slower by what launching takes, and no reason to end a run.
        warnings.warn(f"nothing is captured in graphs on {self.device}: {why}", stacklevel=2)


def new_stream() -> torch.cuda.Stream:
    """A stream of the current device."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return stream


def new_event() -> torch.cuda.Event:
    """An event that keeps time."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
