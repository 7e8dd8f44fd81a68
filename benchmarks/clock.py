"""Which clock a benchmark reads.

"wall" is what a user waits for. "cpu" is the processor time of this process, on one thread: where other programs share
the machine it is what steady ratios come from, since it does not run while they do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from layercoop_fast import _C

CLOCKS = ("wall", "cpu")


def set_up(clock: str, threads: int | None = None) -> Callable[[], float]:
    """Return the clock as a function that gives seconds; for "cpu" the process is held to one thread from here on.

    With `threads` a process on the wall clock computes on so many.
    """
    if clock == "wall":
        if threads is not None:
            torch.set_num_threads(threads)
            _C.set_num_threads(threads)
        return time.perf_counter
    torch.set_num_threads(1)
    _C.set_num_threads(1)
    return time.process_time


def best(now: Callable[[], float], work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        started = now()
        work()
        seconds.append(now() - started)
    return min(seconds)
