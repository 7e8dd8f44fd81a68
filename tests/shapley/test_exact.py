from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from toy_games import Additive, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.shapley.exact import exact_shapley


def test_is_the_mean_over_every_arrival_order() -> None:
    """The other definition, word by word."""
    worths = np.random.default_rng(0).normal(size=1 << 4)
    orders = list(permutations(range(4)))
    values = np.zeros(4)
    for order in orders:
        present = 0
        for player in order:
            values[player] += (worths[present | 1 << player] - worths[present]) / len(orders)
            present |= 1 << player
    exact = exact_shapley(Table(worths))
    np.testing.assert_allclose(exact.values, values, rtol=1e-12)
    assert exact.n_evaluations == 16
    assert exact.method == "exact"
    assert (exact.stderr == 0).all()


def test_additive_game_and_one_player() -> None:
    weights = [0.5, -1.0, 0.0, 3.25]
    np.testing.assert_allclose(exact_shapley(Additive(weights)).values, weights, atol=1e-12)
    np.testing.assert_allclose(exact_shapley(Table([2.0, 5.0])).values, [3.0])


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(RequestError, match="at most 16 players, not 17"):
        exact_shapley(Additive(np.ones(17)))
    with pytest.raises(RequestError, match="1 of 4 worths"):
        exact_shapley(Table([0.0, np.nan, 1.0, 1.0]))
