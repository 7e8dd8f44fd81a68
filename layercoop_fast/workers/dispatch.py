"""The driver's side of many workers: who does what, and what happens when one is lost.

A *transport* starts workers at numbered places and carries messages; this file knows nothing of processes or clusters.
Each place holds one task at a time. A worker that dies, or fails at a task, costs what it had not sent yet: the masks
that are still missing go back to the head of the queue, once. When the same masks are lost a second time the run ends,
and everything received until then stays where the caller put it.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.workers.cut import Task
from layercoop_fast.workers.fingerprints import common_fingerprints, likeness
from layercoop_fast.workers.messages import Array, Message, pack, unpack

# How long one wait for messages lasts at most: between two of them Ctrl-C is seen, and what came is committed.
_WAIT_SECONDS = 0.5


class Transport(Protocol):
    """Starts workers and carries messages to and from them."""

    @property
    def n_workers(self) -> int:
        """How many workers there can be; their places are 0 .. n_workers − 1."""

    @property
    def threads(self) -> int:
        """Threads of each worker."""

    @property
    def shares(self) -> Mapping[str, int]:
        """How many workers share a machine's memory, by what the machine calls itself."""

    def start(self, place: int) -> None:
        """Start a worker at a place that has none, or whose worker is lost; returns before it is there."""

    def send(self, place: int, message: bytes) -> None:
        """Send a message; one to a worker that is lost goes nowhere."""

    def receive(self, seconds: float) -> list[tuple[int, bytes | None]]:
        """Messages that are there, waiting so long for the first; None: the worker at that place is lost."""

    def why_lost(self, place: int) -> str:
        """What is known about the end of the worker that was lost there last."""

    def close(self) -> None:
        """End all workers; they can be started again."""


class Results(NamedTuple):
    """What a worker has measured since it last said so.

    Attributes:
        rows: int64 [R], rows of the masks that were given to `Workers.map`.
        nll, kl: float64 [R, W], mean of each window; NaN where the divergence was not measured.
        evaluations: unit evaluations done.
        teacher: those of the full model, which each worker runs once where the divergence is measured.
    """

    rows: npt.NDArray[np.int64]
    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    evaluations: int
    teacher: int


_NOTHING = Results(np.empty(0, dtype=np.int64), np.empty((0, 0)), np.empty((0, 0)), 0, 0)


@dataclass
class _Job:
    """A task of a worker: its rows, which of them are missing, evaluations planned and done, times it was lost."""

    rows: npt.NDArray[np.int64]
    missing: npt.NDArray[np.bool_]
    planned: int
    done: int = 0
    losses: int = 0

    @classmethod
    def of(cls, rows: npt.NDArray[np.int64], planned: int, losses: int = 0) -> _Job:
        return cls(rows, np.ones(len(rows), dtype=np.bool_), planned, losses=losses)


class Workers:
    """Workers that measure one game at a time, all on one checkpoint.

    Args:
        transport: how they are reached.
        checkpoint: how the checkpoint is opened, as `open_checkpoint` and `Skeleton` are told.
        tolerant: take workers whose machines or versions differ.
    """

    def __init__(self, transport: Transport, checkpoint: dict[str, Any], *, tolerant: bool = False) -> None:
        self.transport = transport
        self.checkpoint = checkpoint
        self.tolerant = tolerant
        self.states = 0
        """States that a worker's plan may store, once open: those of the one with the least memory."""
        self.fingerprints: dict[str, Any] = {}
        """What the workers say they measure, once open."""
        self.remaining = 0
        """Unit evaluations that `map` still has to do."""
        self._order = b""
        self._game = ""
        self._likeness: dict[str, Any] = {}
        self._opening: set[int] = set()
        self._idle: list[int] = []
        self._jobs: dict[int, _Job] = {}
        self._finish = weakref.finalize(self, transport.close)

    @property
    def is_open(self) -> bool:
        """Whether there are workers that know their game."""
        return bool(self._idle or self._jobs)

    def open(self, game: dict[str, Any], **arrays: Array) -> None:
        """Have all workers measure this game from now on: start them, or tell those that are there.

        A game that differs from one before in its windows or its teacher alone costs a worker next to nothing, and one
        that it measured lately nothing at all.

        Raises `RequestError` where one says that the request is wrong, or where they are unlike each other, and
        `RunError` where one is lost while it starts.
        """
        transport = self.transport
        about = {"checkpoint": self.checkpoint, **game, "threads": transport.threads, "shares": dict(transport.shares)}
        name = hashlib.sha256(pack("open", about, **arrays)).hexdigest()
        if self.is_open and name == self._game:
            return
        self._game, self._order = name, pack("open", {**about, "game": name}, **arrays)
        try:
            reports = (self._change() if self.is_open else None) or self._open_all()
            self.fingerprints = common_fingerprints(reports, tolerant=self.tolerant)
        except BaseException:
            self.close()
            raise
        self.states = min(report["states"] for report in reports.values())
        self._likeness = likeness(reports[min(reports)])
        self._idle = sorted(reports)

    def pilot(self) -> tuple[float, float]:
        """Seconds of one unit and of one head on one state, all workers at work: their means."""
        asked = list(self._idle)
        for place in asked:
            self.transport.send(place, pack("pilot"))
        seconds: dict[int, tuple[float, float]] = {}
        try:
            while len(seconds) < len(asked):
                for place, message in self._receive():
                    if place in asked:
                        about = self._expect(place, message, "pilot")
                        seconds[place] = (about["unit"], about["head"])
                    elif message is not None and message.kind == "ready":
                        self._admit_late(place, message)
        except BaseException:
            self.close()
            raise
        unit, head = np.mean(list(seconds.values()), axis=0)
        return float(unit), float(head)

    def map(self, masks: npt.NDArray[np.bool_], tasks: Sequence[Task]) -> Generator[Results, None, None]:
        """Have the tasks' masks (rows of `masks`, bool [M, n]) measured; results come as workers send them.

        After half a second without any an empty one comes, so that the caller is not kept from what else it has to do.
        Raises `RunError` when masks were lost twice, or no worker is left. Whoever stops before the end must close this
        generator: workers in the middle of a task are ended with it.
        """
        waiting = deque(_Job.of(task.rows, task.evaluations) for task in tasks)
        self.remaining = sum(job.planned for job in waiting)
        last_loss = ""
        try:
            while waiting or self._jobs:
                while waiting and self._idle:
                    self._give(self._idle.pop(0), waiting.popleft(), masks)
                if not self._jobs and not self._opening:
                    raise RunError(f"no worker is left ({last_loss}); what was measured until then is kept")
                received = self._receive()
                if not received:
                    yield _NOTHING
                for place, message in received:
                    if message is None or message.kind == "error":
                        last_loss = self._loss(place, message)
                        self._after_loss(place, waiting, last_loss, dead=message is None)
                    elif message.kind == "ready":
                        self._admit_late(place, message)
                    else:
                        yield self._results(place, message)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all workers. `open` starts them again."""
        self._opening.clear()
        self._idle.clear()
        self._jobs.clear()
        self.transport.close()

    def _open_all(self) -> dict[int, dict[str, Any]]:
        """What each worker reports of itself once it has opened the checkpoint."""
        places = range(self.transport.n_workers)
        # All are started before one is told anything: a long message waits until its worker has loaded what it needs.
        for place in places:
            self.transport.start(place)
        return self._tell(places)

    def _change(self) -> dict[int, dict[str, Any]] | None:
        """What each worker reports of the game it measures now instead; None where one was lost, and all are ended."""
        places = sorted({*self._idle, *self._opening})
        self._idle.clear()
        try:
            return self._tell(places)
        except RunError:
            self.close()
            return None

    def _tell(self, places: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Have the workers at these places open the game, and wait until all have."""
        self._opening.update(places)
        for place in places:
            self.transport.send(place, self._order)
        reports: dict[int, dict[str, Any]] = {}
        while self._opening:
            for place, message in self._receive():
                if message is not None and message.kind == "ready" and message.about["game"] != self._game:
                    continue  # a replacement that was still opening the game before
                reports[place] = self._expect(place, message, "ready")
                self._opening.discard(place)
        return reports

    def _start(self, place: int) -> None:
        self.transport.start(place)
        self.transport.send(place, self._order)
        self._opening.add(place)

    def _receive(self) -> list[tuple[int, Message | None]]:
        received = self.transport.receive(_WAIT_SECONDS)
        return [(place, None if message is None else unpack(message)) for place, message in received]

    def _expect(self, place: int, message: Message | None, kind: str) -> dict[str, Any]:
        """The content of a message that must be of this kind: workers are not to fail yet."""
        if message is not None and message.kind == kind:
            return message.about
        if message is not None and message.about["status"] == RequestError.status:
            raise RequestError(message.about["line"])
        raise RunError(f"{self._loss(place, message)} before it had measured anything: are there too many workers?")

    def _loss(self, place: int, message: Message | None) -> str:
        said = self.transport.why_lost(place) if message is None else message.about["line"]
        return f"worker {place} {'was lost' if message is None else 'failed'}: {said}"

    def _admit_late(self, place: int, message: Message) -> None:
        """Let the replacement of a lost worker work, if it is like the others."""
        if message.about["game"] != self._game:
            return  # it still has to answer for the current game
        self._opening.discard(place)
        if self.tolerant or likeness(message.about) == self._likeness:
            self._idle.append(place)

    def _give(self, place: int, job: _Job, masks: npt.NDArray[np.bool_]) -> None:
        self._jobs[place] = job
        self.transport.send(place, pack("measure", masks=masks[job.rows]))

    def _results(self, place: int, message: Message) -> Results:
        job, about = self._jobs[place], message.about
        found = message.arrays["rows"]
        job.missing[found] = False
        job.done += about["evaluations"]
        self.remaining -= about["evaluations"]
        if about["finished"]:
            self._idle.append(place)
            del self._jobs[place]
        return Results(
            job.rows[found], message.arrays["nll"], message.arrays["kl"], about["evaluations"], about["teacher"]
        )

    def _after_loss(self, place: int, waiting: deque[_Job], why: str, *, dead: bool) -> None:
        """Put the masks that the worker at `place` had not sent back into the queue, and replace it where it is dead.

        One that is lost while it opens the checkpoint is not replaced: the next would be lost too.
        """
        job = self._jobs.pop(place, None)
        if place in self._opening:
            self._opening.discard(place)
            return
        if place in self._idle:
            self._idle.remove(place)
        if job is not None and job.losses:
            raise RunError(f"{why}. The same masks were lost a second time; what was measured until then is kept")
        if dead:
            self._start(place)
        else:
            self._idle.append(place)
        if job is not None and job.missing.any():
            rows = job.rows[job.missing]
            planned = round(job.planned * len(rows) / len(job.rows))  # about: it is for the time left only
            self.remaining += planned - (job.planned - job.done)
            waiting.appendleft(_Job.of(rows, planned, job.losses + 1))
