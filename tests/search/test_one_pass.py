"""Methods that rank blocks by one pass of the full model."""

from __future__ import annotations

import numpy as np
import pytest
from toy_games import Counting, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.search.base import get_method

OFFERED = {"shortgpt": "block_influence", "cka": "cka_distances", "zigzag": "zigzag_changes"}


class Model:
    """A game of 4 players that must not be played, and the scores that it offers under one name."""

    n_players = 4

    def __init__(self, name: str, scores: list[float]) -> None:
        setattr(self, name, lambda: np.array(scores))

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        raise AssertionError("no mask is asked")


@pytest.mark.parametrize("method", OFFERED)
def test_removes_the_players_of_least_score(method: str) -> None:
    choice = get_method(method)(Model(OFFERED[method], [0.5, 0.1, 0.3, 0.1]), 2)
    assert choice.mask.tolist() == [True, False, True, False]
    assert choice.scores is not None
    assert choice.scores.tolist() == [0.5, 0.1, 0.3, 0.1]
    assert (choice.method, choice.n_masks) == (method, 0)


@pytest.mark.parametrize("method", OFFERED)
def test_needs_a_game_on_a_model(method: str) -> None:
    with pytest.raises(RequestError, match=rf"{method} needs a game that offers {OFFERED[method]}\(\)"):
        get_method(method)(Counting(Table(np.zeros(16))), 2)


@pytest.mark.parametrize("method", OFFERED)
@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3, np.nan]])
def test_refuses_scores_that_are_no_numbers(method: str, scores: list[float]) -> None:
    with pytest.raises(RequestError, match="4 finite numbers"):
        get_method(method)(Model(OFFERED[method], scores), 2)
