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
            # News of a ticket wake its stream in the loop's next round, before this, and it writes in that same round.
            self._loop.call_soon(passed_on.set)
