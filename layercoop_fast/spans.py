"""Where the time of a run goes: named spans, summed by name, and kept one by one where a trace is wanted.

    with Spans(trace=True) as spans:
        game.evaluate(masks)
    spans.seconds["products of blocks"]          # a span's own time, without the spans inside it
    spans.write_trace(Path("trace.json"))        # for chrome://tracing or Perfetto

Code marks its work with `with timed("name"):`, which costs next to nothing where nobody watches.
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

# The names that the engine uses; a report goes through them in this order.
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
"""What is matrix products alone: the floor that everything else is measured against."""

# A trace of more spans is more than its viewers take.
MOST_EVENTS = 1_000_000
# So many spans that a device measures wait to be read at most.
_MOST_LATER = 4096

_active: Spans | None = None


def watching() -> Spans | None:
    """The spans that are entered now."""
    return _active


class Spans:
    """A context manager that watches the spans of one thread while it is entered.

    Args:
        trace: keep every span, for `write_trace`.

    Attributes:
        seconds: by name, each span's own time: what passes in spans inside it counts for those alone.
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
        self._later.clear()  # of a device that has failed nothing can be read
        self.wall += time.perf_counter() - self._started
        _active = self._outer

    @property
    def idle(self) -> float:
        """Seconds that no span covers: planning, the schedule itself, waiting."""
        return max(0.0, self.wall - sum(self.seconds.values()))

    @property
    def share_of_products(self) -> float:
        """Seconds of matrix products alone, head included, over all seconds: 1 is the floor reached."""
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
        """Count a span that a device measures. `measured` waits for its end, and returns begin and length in seconds.

        The begin is on the clock of `time.perf_counter`.
        """
        self._later.append((name, measured))
        if len(self._later) > _MOST_LATER:
            self._read(_MOST_LATER // 2)  # the older half, whose ends are past: nobody waits for long

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
    """`with timed(name):` counts the time of the block under that name, where `Spans` watch."""

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
