from __future__ import annotations

import numpy as np
import pytest
from toy_games import Family

from layercoop_fast.errors import RequestError
from layercoop_fast.search import angular


class Model:
    """A game that must not be played, and the angles of its runs of two."""

    n_players = 5

    def __init__(self, distances: list[float]) -> None:
        self.distances = distances

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        raise AssertionError("angular asks no mask")

    def angular_distances(self, run_length: int) -> np.ndarray:
        assert run_length == 2
        return np.array(self.distances)


def test_removes_the_run_of_least_angle() -> None:
    choice = angular.search(Model([0.4, 0.2, 0.3, 0.2]), 2)
    assert choice.mask.tolist() == [True, False, False, True, True]
    assert choice.details == {"start": 1, "distances": [0.4, 0.2, 0.3, 0.2]}
    assert choice.scores is not None
    assert choice.scores.tolist() == [0.4, 0.2, 0.2, 0.2, 0.2]
    assert choice.n_masks == 0


def test_takes_the_next_best_run_that_is_allowed() -> None:
    choice = angular.search(Model([0.4, 0.2, 0.3, 0.1]), 2, allowed=Family(lambda mask: bool(mask[3])))
    assert choice.mask.tolist() == [True, False, False, True, True]


def test_where_no_run_is_allowed_the_players_of_close_runs_go() -> None:
    apart = Family(lambda mask: not (~mask[1:] & ~mask[:-1]).any())
    choice = angular.search(Model([0.4, 0.2, 0.3, 0.5]), 2, allowed=apart)
    assert choice.mask.tolist() == [True, False, True, False, True]  # scores 0.4 0.2 0.2 0.3 0.5
    assert choice.details["start"] is None


@pytest.mark.parametrize("distances", [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3, np.nan]])
def test_refuses_angles_that_are_no_numbers(distances: list[float]) -> None:
    with pytest.raises(RequestError, match="4 finite numbers"):
        angular.search(Model(distances), 2)
