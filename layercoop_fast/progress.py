"""Progress bars with rate and time left, on standard error, for work that takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
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

PATIENCE_SECONDS = 2.0


class Bars:
    """A context manager whose `update(stage, done, total)` is what games, estimators and searches call.

    Nothing is drawn before `PATIENCE_SECONDS` have passed, nor when standard error is not a terminal.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._latest: tuple[str, int, int] | None = None
        self._ended = False
        self._lock = threading.Lock()
        # A stage that says nothing between its beginning and its end is drawn too, once it has taken so long.
        self._timer = threading.Timer(PATIENCE_SECONDS, self._begin)
        self._timer.daemon = True

    def __enter__(self) -> Bars:
        if self._console.is_terminal:
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._progress is not None:
                self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Say that `done` of `total` are done in a stage; a stage that begins again begins its bar again."""
        with self._lock:
            self._latest = (stage, done, total)
            if self._progress is not None:
                self._draw(self._progress, stage, done, total)

    def _begin(self) -> None:
        """Patience is over: draw what was said last, and from now on everything."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with self._lock:
            if self._ended:
                return
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            if self._latest is not None:
                self._draw(self._progress, *self._latest)

    def _draw(self, progress: Progress, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = progress.add_task(stage, total=total)
        task = progress.tasks[self._tasks[stage]]
        if done < task.completed:
            progress.reset(task.id, total=total)
        progress.update(task.id, completed=done, total=total)


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")
