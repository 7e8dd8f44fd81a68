"""The best strength of a ridge, without trying all of them.

A trial runs the held-out windows of every text through the pruned model twice, which on a small machine takes most of
the time of a repair. The gain of a repair rises with the strength and then falls, so a hill climb finds the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol, TypeVar

# Relative to the mean square of an input. A smaller one changes nothing any more; a larger one leaves little repair.
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# The first strength tried for a mask's first gap.
USUAL = 0.3


class Trial(Protocol):
    """The result of a strength that may be used."""

    @property
    def score(self) -> float:
        """Lower is better."""


T = TypeVar("T", bound=Trial)


def best_trial(trial: Callable[[float], T | None], start: float) -> T | None:
    """The best trial that a climb over STRENGTHS finds from the one nearest to `start`.

    Args:
        trial: the result of a strength, or None where it must not be used. Called at most once for each strength.
        start: where to begin. Where that must not be used, the climb begins at the next stronger one that may be, since
            a stronger ridge changes less, or else at the next weaker one.

    Returns None where no strength may be used. The trial is the best of all if the usable strengths are adjacent and
    their scores first fall, then rise.
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
