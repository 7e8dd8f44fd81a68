"""What a game has been asked and what that cost, and the way of one call's scores into what a game knows."""

from __future__ import annotations

from dataclasses import dataclass

from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.store import mask_key
from layercoop_fast.masked.model import Work
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks, Progress


@dataclass
class Counts:
    """What a game has been asked and what that cost, summed over its calls.

    Attributes:
        masks: masks asked for, repeats included.
        unique: masks that were really measured.
        layer_evals: unit evaluations done (one block, or half a block, on the tokens of one state).
        layer_evals_naive: unit evaluations that computing every asked mask by itself, with all units, takes.
        token_evals: everything spent, in layers times tokens: evaluations of masks on all windows and on some of them,
            and the passes of rules that mask nothing (a backward pass counts as two forward ones). Half a block is
            half a layer; heads are not counted.
    """

    masks: int = 0
    unique: int = 0
    layer_evals: int = 0
    layer_evals_naive: int = 0
    token_evals: int = 0


class Call:
    """One call of a game: its scores become known as they come, and progress is reported once no kill can undo it.

    Args:
        known: what the game knows.
        masks: the masks that are measured, bool [M, n].
        head_cost: FLOP of the head over those of a mean unit. Progress is by cost, so that the time left is true.
        on_progress: called with ("layer evaluations", done, all of this call).
    """

    def __init__(self, known: KnownScores, masks: Masks, head_cost: float, on_progress: Progress | None) -> None:
        self.unique = 0
        self.work = Work(0, 0)
        self._known = known
        self._keys = [mask_key(mask) for mask in masks]
        self._head_cost = head_cost
        self._on_progress = on_progress
        self._reported = 0

    def take(self, row: int, scores: Scores) -> None:
        """Take in the scores of a mask, float64 [W] each."""
        self._known.add(self._keys[row], scores)
        self.unique += 1

    def count(self, work: Work) -> None:
        """Count what was done."""
        done, _, teacher = self.work
        self.work = Work(done + work.evaluations, work.remaining, teacher + work.teacher)
        self._known.commit_when_due()
        self._report()

    def finish(self) -> None:
        """Report that all is done."""
        self.work = self.work._replace(remaining=0)
        self._report()

    def _report(self) -> None:
        """Report progress, unless something that was measured waits for its commit."""
        done = round(self.work.evaluations + self._head_cost * self.unique)
        if self._on_progress is not None and done > self._reported and self._known.settled:
            total = self.work.evaluations + self.work.remaining + self._head_cost * len(self._keys)
            self._reported = done
            self._on_progress("layer evaluations", done, max(done, round(total)))
