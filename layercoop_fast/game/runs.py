"""Several runs of one game that measure nothing twice; each counts what it would cost by itself.

    game = ModelGame.from_pretrained(...)             # the source
    first, second = game.run(), game.run()
    sleb.search(first, 3), coop.search(second, 3)     # what one has measured costs the other no time
    first.evaluations, second.evaluations             # what each of them takes when nothing is known
    game.evaluations                                  # what was really spent

A run knows what it asked, and nothing else. So a search does the same as on a game of its own, and its counts are those
of such a game with memory for every state. A run measures nothing itself. Its source does, and remembers everything (in
its store, where it has one). The views of the source do the same: one for each other worth or part of the windows that
any run asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from layercoop_fast.masked.model import MaskedModel, Work
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks


class Source(Protocol):
    """What a run needs of the game that measures for it."""

    masked: MaskedModel

    def window_scores(self, masks: Masks) -> Scores:
        """Scores of masks, bool [M, n]: float64 [M, W]."""


class BySource:
    """Measures by asking a source, at the cost of measuring all masks (`MaskedModel.measure`)."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._teacher_is_due = source.masked.teacher

    def measure(
        self, masks: Masks, take: Callable[[int, Scores], None], on_work: Callable[[Work], None], *, short: bool
    ) -> None:
        """Take the scores of masks, bool [M, n], all different, from the source."""
        scores = self._source.window_scores(masks)
        for row, (nll, kl) in enumerate(zip(scores.nll, scores.kl, strict=True)):
            take(row, Scores(nll, kl))
        players = self._source.masked.players
        teacher = players.n_units if self._teacher_is_due else 0
        self._teacher_is_due = False
        on_work(Work(count_evaluations(players.unit_masks(masks)).plan, 0, teacher))
