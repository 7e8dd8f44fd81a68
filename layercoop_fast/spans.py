"""Where the time of a run goes: named spans, summed by name, and kept one by one for a trace.

    with Spans(trace=True) as spans:
        game.evaluate(masks)
    spans.seconds["products of blocks"]          # a span's own time, without the spans inside it
    spans.write_trace(Path("trace.json"))        # for chrome://tracing or Perfetto

Code marks its work with `with timed("name"):`, which costs next to nothing while no `Spans` are entered.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from layercoop_fast.files import written_whole

# The names that the package uses; a report lists them in this order.
BLOCK_PRODUCTS = "products of blocks"
ATTENTION = "attention"
BLOCK_REST = "norms, rotary, SwiGLU, sums"
HF_BLOCKS = "the model's own blocks"
HEAD_PRODUCTS = "products of the head"
HEAD_REST = "norm and loss of the head"
COPIES = "copies of states"
READING = "reading weights (waited)"
STORE = "store"
DEVICE_BLOCKS = "blocks (on the GPU)"
DEVICE_HEAD = "head and loss (on the GPU)"
NAMES = (
    BLOCK_PRODUCTS,
    ATTENTION,
    BLOCK_REST,
    HF_BLOCKS,
    DEVICE_BLOCKS,
    HEAD_PRODUCTS,
    HEAD_REST,
    DEVICE_HEAD,
    COPIES,
    READING,
    STORE,
)
PRODUCTS = (BLOCK_PRODUCTS, HEAD_PRODUCTS)
"""The spans of matrix products alone: the least time that a run can take, and what the rest is compared with."""

# Viewers of traces do not open more spans.
MOST_EVENTS = 1_000_000
# Most spans measured by a device that wait to be read.
_MOST_LATER = 4096

_active: Spans | None = None


def watching() -> Spans | None:
    """The innermost `Spans` that are entered, or None."""
    return _active


class Spans:
    """A context manager that counts the spans of one thread while it is entered.

    Args:
        trace: keep every span, for `write_trace`.

    Attributes:
        seconds: by name, each span's own time; time within an inner span counts for the inner span alone.
        wall: seconds from entering to leaving.
        dropped: spans that a trace left out because there were more than `MOST_EVENTS`.
    """

    def __init__(self, *, trace: bool = False) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.wall = 0.0
        self.dropped = 0
        self._trace = trace
        self._events: list[tuple[str, float, float]] = []
        self._inner = [0.0]  # for each open span, the seconds of the spans inside it
        self._later: list[tuple[str, Callable[[], tuple[float, float]]]] = []
        self._outer: Spans | None = None
        self._started = 0.0

    def __enter__(self) -> Spans:
        global _active
        self._outer, _active = _active, self
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _active
        if kind is None:
            self._read(len(self._later))
        self._later.clear()  # after an error of the device its times cannot be read
        self.wall += time.perf_counter() - self._started
        _active = self._outer

    @property
    def idle(self) -> float:
        """Seconds that no span covers: planning, scheduling, waiting."""
        return max(0.0, self.wall - sum(self.seconds.values()))

    @property
    def share_of_products(self) -> float:
        """Share of the seconds that matrix products take, the head's included: 1 where nothing else takes time."""
        return sum(self.seconds[name] for name in PRODUCTS) / self.wall if self.wall else 0.0

    def write_trace(self, path: Path, *, force: bool = False) -> None:
        """Write the kept spans as a Chrome trace, whole or not at all."""
        process = os.getpid()
        events = [
            {
                "name": name,
                "ph": "X",
                "ts": round((begin - self._started) * 1e6, 1),
                "dur": round(seconds * 1e6, 1),
                "pid": process,
                "tid": 0,
            }
            for name, begin, seconds in self._events
        ]
        content = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"dropped": self.dropped}}
        with written_whole(path, force=force) as made:
            made.write_text(json.dumps(content), encoding="utf-8")

    def add_later(self, name: str, measured: Callable[[], tuple[float, float]]) -> None:
        """Count a span that a device measures.

        `measured` waits for its end and returns begin (on the clock of `time.perf_counter`) and length in seconds.
        """
        self._later.append((name, measured))
        if len(self._later) > _MOST_LATER:
            self._read(_MOST_LATER // 2)  # the older half: these have ended, so reading them does not wait for long

    def _read(self, count: int) -> None:
        for name, measured in self._later[:count]:
            begin, seconds = measured()
            self.seconds[name] += seconds
            self._keep(name, begin, seconds)
        del self._later[:count]

    def _begin(self) -> None:
        self._inner.append(0.0)

    def _end(self, name: str, begin: float) -> None:
        seconds = time.perf_counter() - begin
        inner = self._inner.pop()
        self._inner[-1] += seconds
        self.seconds[name] += seconds - inner
        self._keep(name, begin, seconds)

    def _keep(self, name: str, begin: float, seconds: float) -> None:
        if not self._trace:
            return
        if len(self._events) < MOST_EVENTS:
            self._events.append((name, begin, seconds))
        else:
            self.dropped += 1


class timed:
    """`with timed(name):` counts the time of the block under that name while `Spans` are entered."""

    __slots__ = ("_begin", "_name", "_spans")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._spans = _active
        if self._spans is not None:
            self._spans._begin()
            self._begin = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._spans is not None:
            self._spans._end(self._name, self._begin)
