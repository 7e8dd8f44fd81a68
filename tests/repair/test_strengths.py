"""The climb over strengths: the best of them where scores have one valley, with few trials, and none that is barred."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import pytest

from layercoop_fast.repair.strengths import STRENGTHS, USUAL, best_trial


@dataclass(frozen=True)
class Scored:
    strength: float
    score: float


class Curve:
    """Scores by place; None where a strength must not be taken. Notes what was tried."""

    def __init__(self, scores: list[float | None]) -> None:
        self.scores = dict(zip(STRENGTHS, scores, strict=True))
        self.tried: list[float] = []

    def __call__(self, strength: float) -> Scored | None:
        assert strength not in self.tried
        self.tried.append(strength)
        score = self.scores[strength]
        return None if score is None else Scored(strength, score)


N = len(STRENGTHS)
VALLEYS = [
    [float(abs(place - valley)) if first <= place <= last else None for place in range(N)]
    for first in range(N)
    for last in range(first, N)
    for valley in range(first, last + 1)
]


@pytest.mark.parametrize("start", [STRENGTHS[0] / 7, *STRENGTHS, STRENGTHS[-1] * 7])
def test_the_best_of_all_is_found_in_every_valley(start: float) -> None:
    for scores in VALLEYS:
        found = best_trial(Curve(scores), start)
        assert found is not None
        assert found.strength == STRENGTHS[scores.index(0.0)]


def test_a_valley_at_the_start_takes_three_trials() -> None:
    curve = Curve([abs(math.log(strength / USUAL)) for strength in STRENGTHS])
    best_trial(curve, USUAL)
    assert sorted(curve.tried) == [0.1, 0.3, 1.0]


def test_where_no_strength_may_be_taken_all_are_tried_and_none_comes_back() -> None:
    curve = Curve([None] * N)
    assert best_trial(curve, USUAL) is None
    assert sorted(curve.tried) == list(STRENGTHS)


def test_whatever_the_scores_are_no_neighbour_betters_the_answer() -> None:
    for scores in product([None, 0.0, 1.0, 2.0], repeat=N):
        found = best_trial(Curve(list(scores)), 3.0)
        if found is None:
            assert set(scores) == {None}
            continue
        place = STRENGTHS.index(found.strength)
        beside = [scores[one] for one in (place - 1, place + 1) if 0 <= one < N]
        assert scores[place] == found.score
        assert all(other is None or other >= found.score for other in beside)
