"""One thread that computes for all requests, so that the event loop never waits for a token.

    engine = Engine(model, options)
    engine.start(loop)
    ticket = engine.submit(requests)            # on the event loop; RefusedError 429 where too many wait
    async for came in ticket.arrivals(): ...    # [(index, step), ...] as they come; or one by one, `steps`
    ticket.cancel()                             # its pages are free after the step that is being computed

A client that reads slowly holds no queue of ours: what it has not read stays in its own request, which is bounded by
the tokens that it asked for. A request that takes longer than its time is ended, whether its client reads or not.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from layercoop_fast.errors import LayercoopError, RequestError, RunError
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.requests import Request, Running, Step
from layercoop_fast.serving.failures import RefusedError, bad_request
from layercoop_fast.serving.hand_over import HandOver
from layercoop_fast.serving.metrics import Metrics
from layercoop_fast.serving.options import ServerOptions

log = logging.getLogger("layercoop_fast.serving")


@dataclass(eq=False)
class Ticket:
    """The requests of one call of a client, under way together.

    Attributes:
        model: the name that metrics count it under.
        runnings: the requests, in the order in which they were given.
        arrived: `time.perf_counter()` when the call came.
    """

    engine: Engine
    model: str
    runnings: list[Running]
    arrived: float
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _expired: bool = False
    _seen: list[int] = field(default_factory=list)
    _last: list[float] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return all(one.ended for one in self.runnings)

    async def arrivals(self) -> AsyncIterator[list[tuple[int, Step]]]:
        """All tokens that came since the last time, each with the number of the request that it belongs to.

        Raises `RefusedError` where a request failed, or took longer than it may.
        """
        at = [0] * len(self.runnings)
        while True:
            self._news.clear()
            ended = self.ended  # before what it says of steps is read
            came: list[tuple[int, Step]] = []
            for index, one in enumerate(self.runnings):
                if steps := one.steps[at[index] :]:
                    at[index] += len(steps)
                    came.extend((index, step) for step in steps)
            if came:
                yield came
            if self._expired:
                raise RefusedError(504, f"the request took longer than {self.engine.options.timeout:g} s", "timeout")
            for one in self.runnings:
                if one.error is not None:
                    raise _refused(one.error)
            if ended:
                return
            self.engine.check()
            await self._news.wait()

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """As `arrivals`, token by token."""
        async for came in self.arrivals():
            for each in came:
                yield each

    def cancel(self) -> None:
        """End what has not ended, as when the client goes away; see `Engine.drop`. Never waits."""
        self.engine.drop(self)

    def _expire(self) -> None:
        self._expired = True
        self.cancel()
        self._news.set()


class Engine:
    """See the module.

    Args:
        model: what computes.
        options: how much it takes on.
        metrics: counts what it does.
    """

    def __init__(self, model: LayerSkipModel, options: ServerOptions, metrics: Metrics) -> None:
        self.model = model
        self.options = options
        self.metrics = metrics
        self.failed: str | None = None
        """Why the thread ended, where it did so by itself; then nothing is answered any more."""
        model.batcher.most = options.parallel
        self._tickets: dict[Running, Ticket] = {}  # touched by the event loop alone
        self._dropped: deque[Running] = deque()  # to be cancelled by the thread: it may take a step's time
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def under_way(self) -> int:
        """Requests that have not ended."""
        return len(self._tickets)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to compute; news go to `loop`."""
        self._loop = loop
        self._thread = threading.Thread(target=self._work, name="layercoop-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what is under way, and the thread."""
        with self._wake:
            self._closing = True
        for ticket in list(dict.fromkeys(self._tickets.values())):
            ticket.cancel()
            ticket._news.set()
        with self._wake:
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def check(self) -> None:
        """Raise `RefusedError` 503 where the thread has failed, or ends."""
        if self.failed is not None:
            raise RefusedError(503, f"the engine has failed: {self.failed}", "engine_failed")
        if self._closing:
            raise RefusedError(503, "the server ends", "shutting_down")

    def submit(self, model: str, requests: Sequence[Request]) -> Ticket:
        """Take in the requests of one call; they are computed from the next step on.

        Raises `RefusedError`: 429 where too many wait, 503 where the engine failed, 400 for what cannot be computed.
        """
        self.check()
        if self._tickets and self.under_way + len(requests) > self.options.parallel + self.options.queue:
            wait = str(max(1, min(60, self.under_way // self.options.parallel)))
            raise RefusedError(429, "too many requests wait already", "queue_full", headers={"Retry-After": wait})
        try:
            runnings = [self.model.batcher.prepare(request) for request in requests]
        except RequestError as error:
            raise bad_request(str(error)) from error
        ticket = Ticket(
            self, model, runnings, time.perf_counter(), _seen=[0] * len(runnings), _last=[0.0] * len(runnings)
        )
        self._tickets.update(dict.fromkeys(runnings, ticket))
        assert self._loop is not None
        ticket._timer = self._loop.call_later(self.options.timeout, ticket._expire)
        self.metrics.came(model, runnings)
        with self._wake:
            self.model.batcher.start(runnings)
            self._wake.notify()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """End what of a ticket has not ended, as when its client goes away.

        The thread gives the pages of its keys and values back (`Batcher.cancel`) once the step that is being computed
        is done.
        """
        for one in ticket.runnings:
            if not one.ended:
                self._dropped.append(one)
            self._forget(ticket, one)
        with self._wake:
            self._wake.notify()

    def _forget(self, ticket: Ticket, one: Running) -> None:
        if self._tickets.pop(one, None) is not None:
            self.metrics.went(ticket.model, one)
        if ticket._timer is not None and not any(each in self._tickets for each in ticket.runnings):
            ticket._timer.cancel()

    def _work(self) -> None:
        assert self._loop is not None
        batcher = self.model.batcher
        hand_over = HandOver(self._loop, self.model.executor.threads)
        try:
            while True:
                with self._wake:
                    while batcher.idle and not self._closing and not self._dropped:
                        self._wake.wait()
                    if batcher.idle and self._closing and not self._dropped:
                        return
                while self._dropped:
                    batcher.cancel(self._dropped.popleft())
                if touched := batcher.step():
                    counts = [(one, len(one.steps)) for one in touched]  # the loop may look only after further steps
                    hand_over(partial(self._tell, counts, time.perf_counter()))
        except RuntimeError as error:
            if not self._loop.is_closed():
                self._fail(error)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        log.error("the engine failed", exc_info=error)
        self.failed = f"{type(error).__name__}: {error}"
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.close)

    def _tell(self, touched: Sequence[tuple[Running, int]], now: float) -> None:
        """On the event loop: let the tickets of these requests know, and count."""
        for one, count in touched:
            ticket = self._tickets.get(one)
            if ticket is None:
                continue
            index = ticket.runnings.index(one)
            new = count - ticket._seen[index]
            if new > 0:
                first = ticket._seen[index] == 0
                since = ticket.arrived if first else ticket._last[index]
                self.metrics.tokens(ticket.model, new, now - since, first=first)
                ticket._seen[index], ticket._last[index] = count, now
            ticket._news.set()
            if one.ended and count == len(one.steps):
                self._forget(ticket, one)


def _refused(error: Exception) -> RefusedError:
    if isinstance(error, RequestError):
        return bad_request(str(error))
    if isinstance(error, RunError) and "cancelled" in str(error):
        return RefusedError(499, "the request was cancelled", "cancelled")
    text = str(error) if isinstance(error, LayercoopError) else f"{type(error).__name__}: {error}"
    return RefusedError(500, text, "engine_error")
