"""Seconds of the stages of `prune`, and who is told how far they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from layercoop_fast.masks.types import Progress


class StageTimer:
    """Measures stages and reports their progress.

    Attributes:
        progress: called with (stage, done, total), where somebody wants to know.
        seconds: of each stage that has ended.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str, said: str | None = None) -> Iterator[None]:
        """Time a stage; with `said`, report its beginning and its end under that name."""
        started = time.perf_counter()
        self.tell(said, 0)
        try:
            yield
        finally:
            took = self.seconds.get(stage, 0.0) + time.perf_counter() - started  # some stages come in two parts
            self.seconds[stage] = round(took, 3)
        self.tell(said, 1)

    def tell(self, said: str | None, done: int) -> None:
        """Report something that is one step."""
        if self.progress is not None and said is not None:
            self.progress(said, done, 1)
