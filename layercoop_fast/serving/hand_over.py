"""From the thread that computes to the event loop: it is told what came, and passes that on before the next step.

The threads of a step on the CPU wait for each other some hundred times. Where they are as many as the processors, an
event loop that runs during a step takes the processor of one of them, all others wait for that one, and the system may
leave two of them on one processor for some milliseconds. So the next step begins once the tokens of the last one were
written to their clients, or after `MOST_SECONDS` where these are so many that a step may as well begin.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from layercoop_fast.system import machine

MOST_SECONDS = 0.002

# A ticket's news wake its stream in the loop's next round, which writes in that same round; only an answer's first
# token, whose head is written before it, takes some more.
_ROUNDS = 4


class HandOver:
    """See the module.

    Args:
        loop: the event loop.
        threads: that compute a step.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        self._loop = loop
        self._waits = threads >= machine.processors()

    def __call__(self, tell: Callable[[], None]) -> None:
        """Have the loop call `tell`, and wait until what that woke has run. `RuntimeError` where the loop is closed."""
        if not self._waits:
            self._loop.call_soon_threadsafe(tell)
            return
        passed_on = threading.Event()
        self._loop.call_soon_threadsafe(self._pass_on, tell, passed_on)
        passed_on.wait(MOST_SECONDS)

    def _pass_on(self, tell: Callable[[], None], passed_on: threading.Event) -> None:
        try:
            tell()
        finally:
            self._after(_ROUNDS, passed_on)

    def _after(self, rounds: int, passed_on: threading.Event) -> None:
        if rounds:
            self._loop.call_soon(self._after, rounds - 1, passed_on)
        else:
            passed_on.set()
