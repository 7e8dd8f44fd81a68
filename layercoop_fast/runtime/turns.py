"""Work that one thread at a time does for all that wait for it.

    turns.until(done, work)   # calls work() until done(); while another thread works, waits
    turns.post(job)           # job() by whichever thread works next; does not wait
    turns.call(job)           # the same, and its result

Whoever waits and finds no thread at work works itself, and hands on when it has what it wanted. So no thread of our own
is needed, and a single caller pays for no switch of threads. `work` and jobs never run at the same time, and all that
only they touch needs no lock.

No turn is broken off: a signal that comes in its middle (Ctrl-C) is handled at its end. A fork waits for the end of a
turn, so the child finds everything whole, and no thread at work.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from layercoop_fast.errors import RunError

Result = TypeVar("Result")

# Seconds after which a waiting thread looks by itself, should the one that was to wake it have been interrupted there.
_PATIENCE = 1.0
# Signals whose handlers may raise.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]


class Turns:
    """See the module.

    Args:
        forked: gives what is called in a forked child, where no other thread is left; a weak reference, so that an
            owner goes, and a model's memory with it, when nobody holds it any more.
    """

    def __init__(self, forked: Callable[[], Callable[[], None] | None] = lambda: None) -> None:
        self._forked = forked
        # Every turn goes through the door, and a fork shuts it: threads that begin turn after turn cannot starve it.
        self._door = threading.Lock()
        self._lock = threading.Lock()  # for moments only; guards the two below
        self._worker: int | None = None  # the thread whose turn it is
        self._waiters: list[tuple[threading.Condition, Callable[[], bool]]] = []
        self._jobs: deque[Callable[[], object]] = deque()
        with _forking:
            _all.add(self)

    def until(self, done: Callable[[], bool], work: Callable[[], object]) -> None:
        """Call `work` until `done` holds, or wait while another thread works.

        `done` becomes true by turns alone, takes no lock and is quick; other threads call it too. What `work` raises is
        raised here, in the thread that had the turn. Raises `RunError` when called from within a turn.
        """
        try:
            while not done():
                if not self._turn(work):
                    self._wait(done)
        finally:
            with self._lock:
                if self._worker is None and self._waiters:
                    self._waiters[0][0].notify()
            self._settle()

    def post(self, job: Callable[[], object]) -> None:
        """Have a job done: at once where no thread works, else before the next turn. It must not raise.

        Never waits, so that finalisers may call it, which run in any thread at any place.
        """
        self._jobs.append(job)
        self._settle()

    def call(self, job: Callable[[], Result]) -> Result:
        """Do a job while no thread works; returns or raises what it does."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def do() -> None:
            try:
                results.append(job())
            except BaseException as error:
                errors.append(error)

        self._jobs.append(do)
        self.until(lambda: bool(results or errors), lambda: None)
        if errors:
            raise errors.pop()
        return results[0]

    def _settle(self) -> None:
        """Do posted jobs. Where another thread works, or is about to, it looks for jobs behind that."""
        while self._jobs and self._turn(lambda: None, blocking=False):
            pass

    def _turn(self, work: Callable[[], object], *, blocking: bool = True) -> bool:
        """A turn, posted jobs first; False where another thread has it."""
        with _signals_held():
            if not self._begin(blocking):
                return False
            try:
                while self._jobs:
                    self._jobs.popleft()()
                work()
            finally:
                with self._lock:
                    self._worker = None
                    for awake, done in self._waiters:
                        if done():
                            awake.notify()
        return True

    def _begin(self, blocking: bool) -> bool:
        if not self._door.acquire(blocking):
            return False
        try:
            if not self._lock.acquire(blocking):
                return False
            try:
                if self._worker == threading.get_ident() and blocking:
                    raise RunError("a model was called from within its own step")
                if self._worker is not None:
                    return False
                self._worker = threading.get_ident()
                return True
            finally:
                self._lock.release()
        finally:
            self._door.release()

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._lock:
            if self._worker is None or done():
                return
            waiter = (threading.Condition(self._lock), done)
            self._waiters.append(waiter)
            try:
                waiter[0].wait(_PATIENCE)
            finally:
                self._waiters.remove(waiter)

    def _hold(self) -> None:
        """Shut the door, and take the lock once no other thread works."""
        self._door.acquire()
        self._lock.acquire()
        while self._worker not in (None, threading.get_ident()):
            self._lock.release()
            time.sleep(1e-3)
            self._lock.acquire()

    def _let_go(self) -> None:
        self._lock.release()
        self._door.release()

    def _begin_again(self) -> None:
        """In a forked child: no thread waits."""
        self._door = threading.Lock()
        self._lock = threading.Lock()
        self._waiters = []
        if (forked := self._forked()) is not None:
            forked()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Handle signals that come within the block behind it. Only the main thread is interrupted by signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda *signalled: came.append(signalled))
        yield
    finally:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except BaseException:  # one that is back already was called before the others were
            for number, handler in handlers.items():
                signal.signal(number, handler)
            raise
        for number, frame in came:
            handlers[signal.Signals(number)](number, frame)


_all: weakref.WeakSet[Turns] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[Turns] = []


def _before_fork() -> None:
    _forking.acquire()
    with _signals_held():  # an interruption between the locks would leave some of them taken
        for turns in list(_all):
            turns._hold()
            _held.append(turns)


def _after_in_parent() -> None:
    held = _held[:]
    _held.clear()
    for turns in held:
        turns._let_go()
    _forking.release()
    for turns in held:
        turns._settle()  # what was posted while the door was shut


def _after_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    held = _held[:]
    _held.clear()
    for turns in held:
        turns._begin_again()
    for turns in held:
        turns._settle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
