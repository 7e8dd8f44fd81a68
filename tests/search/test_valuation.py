"""Which measured masks a valuation takes, and which of them belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game.worths import Worths
from layercoop_fast.search import valuation


def worths_of(masks: np.ndarray, worths: np.ndarray) -> Worths:
    nll = -worths
    return Worths(masks, worths, nll, nll[:, None], np.array([7]), {"utility": "nll", "players": "layers"})


def test_the_same_few_masks_again_and_again_do_not_do() -> None:
    masks = np.tile(~np.eye(4, dtype=np.bool_), (5, 1))
    with pytest.raises(RequestError, match="4 distinct masks of finite worth cannot distinguish 4 players"):
        valuation.value_players(worths_of(masks, -np.arange(20.0)))


def test_clusters_are_those_of_the_masks_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def fit(masks: np.ndarray, worths: np.ndarray, **options: Any) -> None:
        assert options["clusters"].tolist() == [0, 0, 2, 2, 3, 3, 4]
        raise Reached

    monkeypatch.setattr(valuation.Surrogate, "fit", fit)
    masks = np.array([[bool(row >> i & 1) for i in range(3)] for row in range(8)])
    worths = -np.arange(8.0)
    worths[2] = np.nan
    with pytest.raises(Reached):
        valuation.value_players(worths_of(masks, worths), clusters=np.array([0, 0, 1, 2, 2, 3, 3, 4]))
