"""Which strength of a ridge is best, without trying them all.

A trial runs every domain's held-out windows through all that is left of the model, twice: on a small machine that, and
not the fit, is what a repair takes. What a repair gains rises with the strength and falls again, so the trials climb.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol, TypeVar

# Of the mean square of an input. Below the first nothing changes any more, above the last little is left of a repair.
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Where the trials of a mask's first gap begin.
USUAL = 0.3


class Trial(Protocol):
    """What came of a strength that may be taken."""

    @property
    def score(self) -> float:
        """Lower is better."""


T = TypeVar("T", bound=Trial)


def best_trial(trial: Callable[[float], T | None], start: float) -> T | None:
    """The best trial of a strength and of its neighbours in STRENGTHS, climbing from the one nearest to `start`.

    Args:
        trial: what comes of a strength; None where it must not be taken. Asked once at most for each.
        start: where to begin; where that must not be taken, with the next stronger one that may be, since a stronger
            ridge changes less, or else with the next weaker.

    None where no strength may be taken. The trial is the best of all if those that may be taken stand side by side and
    their scores fall, then rise.
    """

    @cache
    def of(place: int) -> T | None:
        return trial(STRENGTHS[place]) if 0 <= place < len(STRENGTHS) else None

    def score(place: int) -> float:
        found = of(place)
        return math.inf if found is None else found.score

    first = min(range(len(STRENGTHS)), key=lambda place: abs(math.log(STRENGTHS[place] / start)))
    order = [*range(first, len(STRENGTHS)), *reversed(range(first))]
    place = next((one for one in order if of(one) is not None), None)
    if place is None:
        return None
    for step in (1, -1):
        while score(place + step) < score(place):
            place += step
    return of(place)
