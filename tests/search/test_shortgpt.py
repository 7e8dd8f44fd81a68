from __future__ import annotations

import numpy as np
import pytest
from toy_games import Counting, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.search import shortgpt


class Model:
    """A game that must not be played, and the influences of its blocks."""

    def __init__(self, influence: list[float]) -> None:
        self.influence = influence
        self.n_players = 4

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        raise AssertionError("shortgpt asks no mask")

    def block_influence(self) -> np.ndarray:
        return np.array(self.influence)


def test_removes_the_least_influential() -> None:
    choice = shortgpt.search(Model([0.5, 0.1, 0.3, 0.1]), 2)
    assert choice.mask.tolist() == [True, False, True, False]
    assert choice.scores is not None
    assert choice.scores.tolist() == [0.5, 0.1, 0.3, 0.1]
    assert choice.n_masks == 0


def test_needs_a_game_on_a_model() -> None:
    with pytest.raises(RequestError, match=r"offers block_influence\(\)"):
        shortgpt.search(Counting(Table(np.zeros(16))), 2)


@pytest.mark.parametrize("influence", [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3, np.nan]])
def test_refuses_influences_that_are_no_numbers(influence: list[float]) -> None:
    with pytest.raises(RequestError, match="4 finite numbers"):
        shortgpt.search(Model(influence), 2)
