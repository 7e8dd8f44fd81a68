"""A player's angular score is of the runs that hold it."""

from __future__ import annotations

import numpy as np

from layercoop_fast.search.angular import search


class Turning:
    """A game of four players whose runs of two turn the stream by these angles."""

    n_players = 4

    def angular_distances(self, run_length: int) -> np.ndarray:
        assert run_length == 2
        return np.array([5.0, 1.0, 7.0])


def test_scores_are_of_runs_that_hold_the_player() -> None:
    choice = search(Turning(), 2)  # type: ignore[arg-type]
    assert choice.scores is not None
    assert choice.scores.tolist() == [5.0, 1.0, 1.0, 7.0]
    assert np.flatnonzero(~choice.mask).tolist() == [1, 2]
