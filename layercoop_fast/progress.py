"""Progress of long work on standard error: bars on a terminal, elsewhere a plain line every half minute.

Bars show rate and time left, and appear for work that takes longer than two seconds. Where standard error is a file or
a pipe (a job on a cluster, a log), a line says the same every half minute, and work shorter than that prints nothing:

    layercoop-fast: 1 min 30 s: methods and sizes 3/12 (25 %, about 5 min left), layer evaluations 400/900 (44 %, ...)
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from layercoop_fast.shown import shown

PATIENCE_SECONDS = 2.0
PERIOD_SECONDS = 30.0


class Bars:
    """A context manager; games, estimators and searches call its `update(stage, done, total)`.

    On a terminal nothing is drawn before `patience` seconds have passed. Elsewhere a line is written every `period`
    seconds, the first one after the first period: it names the stages that were updated since the previous line, or
    the latest stage where none was. A thread of its own draws and writes, so that a stage without updates between its
    beginning and its end is shown too.

    Args:
        first: the stage that is shown until the first update.
        patience: seconds; default `PATIENCE_SECONDS`.
        period: seconds; default `PERIOD_SECONDS`.
        clock: a monotonic clock in seconds; times elapsed and left are differences of it.
    """

    def __init__(
        self,
        first: str = "starting",
        *,
        patience: float | None = None,
        period: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(file=sys.stderr)
        self._tasks: dict[str, TaskID] = {}
        self._opening: TaskID | None = None
        self._progress: Progress | None = None
        self._stages = _Stages(first, clock)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._period = PERIOD_SECONDS if period is None else period
        self._thread = threading.Thread(target=self._draw if self._console.is_terminal else self._tell, daemon=True)

    def __enter__(self) -> Bars:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._progress is not None:
            self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` are done in a stage; a smaller `done` than before restarts its bar."""
        with self._lock:
            self._stages.update(stage, done, total)
            if self._progress is not None:
                if self._opening is not None:
                    self._progress.remove_task(self._opening)
                    self._opening = None
                self._set(self._progress, stage, done, total)

    def say(self, text: str) -> None:
        """Write a line on standard error at once, on a terminal above the bars."""
        with self._lock:
            if self._progress is not None:
                self._progress.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)
            else:
                _write(text)

    def _draw(self) -> None:
        """On a terminal: after the patience draw the latest update, and from then on every one."""
        if self._ended.wait(self._patience):
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with self._lock:
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            latest = self._stages.latest
            if latest.total:  # the first stage has no count
                self._set(self._progress, latest.name, latest.done, latest.total)
            else:
                self._opening = self._progress.add_task(shown(latest.name), total=None)

    def _tell(self) -> None:
        """Elsewhere: a line every period."""
        while not self._ended.wait(self._period):
            with self._lock:
                _write(f"layercoop-fast: {self._stages.line()}")

    def _set(self, progress: Progress, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = progress.add_task(shown(stage), total=total)
        task = next(task for task in progress.tasks if task.id == self._tasks[stage])
        if done < task.completed:
            progress.reset(task.id, total=total)
        progress.update(task.id, completed=done, total=total)


@dataclass
class _Stage:
    """A stage at its latest update.

    Attributes:
        name: of the stage.
        done: items done.
        total: items in all.
        first: items done at the first update.
        began: time of the first update, in seconds.
    """

    name: str
    done: int
    total: int
    first: int
    began: float

    def describe(self, now: float) -> str:
        """Name, count, share and time left, as far as they are known."""
        if self.total <= 1:
            return self.name
        share = f"{self.done / self.total:.0%}".replace("%", " %")
        left = ""
        if self.first < self.done < self.total:
            rest = (now - self.began) * (self.total - self.done) / (self.done - self.first)
            left = f", about {duration(rest)} left"
        return f"{self.name} {self.done:,}/{self.total:,} ({share}{left})"


class _Stages:
    """The latest update of each stage, and the line that describes them."""

    def __init__(self, first: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._stages: dict[str, _Stage] = {}
        self._heard: set[str] = set()
        self.latest = _Stage(first, 0, 0, 0, self._began)

    def update(self, name: str, done: int, total: int) -> None:
        """Take in an update; one that counts less than before, or follows the end of the stage, restarts the stage."""
        stage = self._stages.get(name)
        if stage is None or done < stage.done or stage.done >= stage.total:
            self._stages.pop(name, None)  # a line names stages in the order in which they began
            stage = self._stages[name] = _Stage(name, done, total, done, self._clock())
        stage.done, stage.total = done, total
        self.latest = stage
        self._heard.add(name)

    def line(self) -> str:
        """Time since the beginning, and the unfinished stages updated since the previous line, or the latest one."""
        now = self._clock()
        stages = [stage for stage in self._stages.values() if stage.name in self._heard and stage.done < stage.total]
        self._heard.clear()
        what = ", ".join(stage.describe(now) for stage in stages or [self.latest])
        return f"{duration(now - self._began)}: {what}"


def duration(seconds: float) -> str:
    """Seconds as text for people: 45 s, 1 min 30 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _write(text: str) -> None:
    """Write one line on standard error, without control characters; errors of writing are ignored."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{shown(text)}\n")
        sys.stderr.flush()


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")
