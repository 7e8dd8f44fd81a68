from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.search import taylor


class Model:
    """A game that must not be played, and the importances of its blocks."""

    n_players = 4

    def __init__(self, importance: list[float]) -> None:
        self.importance = importance

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        raise AssertionError("taylor asks no mask")

    def taylor_importance(self, progress: object) -> np.ndarray:
        return np.array(self.importance)


def test_removes_the_least_important() -> None:
    choice = taylor.search(Model([5.0, 1.0, np.nan, 2.0]), 2)
    assert choice.mask.tolist() == [True, False, True, False]
    assert choice.n_masks == 0
    assert choice.scores is not None
    assert choice.scores[0] == 5.0


def test_refuses_another_number_of_importances() -> None:
    with pytest.raises(RequestError, match="must give 4 numbers"):
        taylor.search(Model([1.0, 2.0]), 2)
