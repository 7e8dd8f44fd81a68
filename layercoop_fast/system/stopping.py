"""Ctrl-C and signals as exceptions, so that a command can clean up before it ends.

    with stopped_by_signals() as came:
        ...                             # SIGTERM and SIGHUP raise `Terminated` here; a second one ends the process

Python turns Ctrl-C into `KeyboardInterrupt`. The other signals raise `Terminated`, which is a class of its own because
a conversation (`chat`) continues after Ctrl-C but not after those.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from layercoop_fast.errors import RunError

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(BaseException):
    """A signal asked this process to end; `status` is the exit status that shells give for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = status_of(number)


def status_of(number: int) -> int:
    """The exit status of a process that a signal ended, as shells give it: 143 for SIGTERM."""
    return 128 + number


STOPS = (KeyboardInterrupt, Terminated)
"""The exceptions to catch in order to clean up and say what is kept."""


class Stopped(RunError):
    """A command was stopped; the message says what is kept. `status` is 128 + its number for a signal, 1 for Ctrl-C."""

    def __init__(self, message: str, stop: BaseException) -> None:
        super().__init__(f"stopped. {message}")
        self.status = stop.status if isinstance(stop, Terminated) else RunError.status


@contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Have SIGTERM and SIGHUP raise `Terminated` in the main thread; a second signal ends the process at once.

    Yields a list that the number of the first signal is added to: a library may turn `Terminated` into another error.
    Signals that are ignored (`nohup`) or handled already are left alone. In other threads nothing is done.
    """
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if came:
            os._exit(status_of(number))
        came.append(number)
        raise Terminated(number)

    replaced = []
    if threading.current_thread() is threading.main_thread():
        replaced = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
