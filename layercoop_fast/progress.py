"""Progress bars with rate and time left, on standard error, for work that takes longer than two seconds."""

from __future__ import annotations

import sys
import time
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
        self._started = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Say that `done` of `total` are done in a stage; a stage that begins again begins its bar again."""
        if not self._console.is_terminal or time.monotonic() - self._started < PATIENCE_SECONDS:
            return
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        task = self._progress.tasks[self._tasks[stage]]
        if done < task.completed:
            self._progress.reset(task.id, total=total)
        self._progress.update(task.id, completed=done, total=total)


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")
