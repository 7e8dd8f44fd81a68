"""Work that one of the waiting threads does for all of them.

    turns.until(done, work)   # calls work() until done(); while another thread works, waits
    turns.post(job)           # job() by the thread that works next; does not wait
    turns.call(job)           # the same, and its result

A thread that waits and finds no other thread at work works itself, and lets another one continue when its own condition
holds. So no additional thread is needed, and a single caller never switches threads. `work` and jobs never run at the
same time, so that data which only they use needs no lock.

A turn is never interrupted: a signal that arrives during it (Ctrl-C) is handled at its end. A fork waits for the end of
a turn, so that the child finds consistent data and no thread at work.
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

# Seconds after which a waiting thread checks by itself, in case the thread that should wake it was interrupted.
_PATIENCE = 1.0
# Signals whose handlers may raise.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]


class Turns:
    """Turns of several threads at some work.

    Args:
        forked: returns the function to call in a forked child, where no other thread exists, or None. It should be a
            weak reference, so that its owner, and the memory of a model with it, can be freed.
    """

    def __init__(self, forked: Callable[[], Callable[[], None] | None] = lambda: None) -> None:
        self._forked = forked
        # Every turn begins by taking the door, and a fork keeps it: new turns cannot delay a fork forever.
        self._door = threading.Lock()
        self._lock = threading.Lock()  # held briefly; guards the two below
        self._worker: int | None = None  # the thread whose turn it is
        self._waiters: list[tuple[threading.Condition, Callable[[], bool]]] = []
        self._jobs: deque[Callable[[], object]] = deque()
        with _forking:
            _all.add(self)

    def until(self, done: Callable[[], bool], work: Callable[[], object]) -> None:
        """Call `work` until `done` holds, or wait while another thread works.

        `done` must become true by turns only, take no lock and be quick; other threads call it too. Exceptions of
        `work` are raised here, in the thread that had the turn. Raises `RunError` when called from within a turn.
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
        """Run a job: at once where no thread works, else before the next turn. It must not raise.

        This never waits, so that finalisers may call it, which run in any thread at any place.
        """
        self._jobs.append(job)
        self._settle()

    def call(self, job: Callable[[], Result]) -> Result:
        """Run a job while no thread works; return its result or raise its exception."""
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
        """Run posted jobs, unless another thread works or is about to: that thread runs them after its turn."""
        while self._jobs and self._turn(lambda: None, blocking=False):
            pass

    def _turn(self, work: Callable[[], object], *, blocking: bool = True) -> bool:
        """Take a turn, posted jobs first; return False where another thread has it."""
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
        """Take the door, and the lock once no other thread works."""
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
        """Reset in a forked child, where no thread waits."""
        self._door = threading.Lock()
        self._lock = threading.Lock()
        self._waiters = []
        if (forked := self._forked()) is not None:
            forked()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay signals that arrive within the `with` block to its end. Only the main thread is interrupted by signals."""
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
        except BaseException:  # a handler that was restored already has run before the others were
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
        turns._settle()  # jobs that were posted in the meantime


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
