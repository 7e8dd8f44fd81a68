from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Additive, Counting, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.shapley.exact import exact_shapley
from layercoop_fast.shapley.permutation import shapley_values

# Games are drawn by seed: worths out of Hypothesis' corners (all equal but one) have marginals too rare to sample, and
# no finite sample is within any number of its own standard errors then.
games = st.tuples(st.integers(2, 7), st.integers(0, 2**32 - 1)).map(
    lambda drawn: Table(np.random.default_rng(drawn[1]).normal(size=1 << drawn[0]))
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(game=games, antithetic=st.booleans())
def test_within_five_standard_errors_of_exact(game: Table, antithetic: bool) -> None:
    estimate = shapley_values(game, n_permutations=400, antithetic=antithetic)
    error = np.abs(estimate.values - exact_shapley(game).values)
    # Two players and antithetic orders: the estimate is exact and its standard error rounding.
    assert (error <= 5 * estimate.stderr + 1e-12).all(), (error, estimate.stderr)


@settings(max_examples=40, deadline=None)
@given(game=games, n_permutations=st.sampled_from([4, 6, 50]))
def test_values_sum_to_all_minus_none(game: Table, n_permutations: int) -> None:
    estimate = shapley_values(game, n_permutations=n_permutations)
    np.testing.assert_allclose(estimate.values.sum(), game.worths[-1] - game.worths[0], atol=1e-12)


def test_standard_error_is_the_spread_of_repeats() -> None:
    game = Table(np.random.default_rng(4).normal(size=1 << 5))
    for antithetic in (True, False):
        runs = [shapley_values(game, n_permutations=60, antithetic=antithetic, seed=seed) for seed in range(300)]
        spread = np.std([run.values for run in runs], axis=0, ddof=1)
        typical = np.sqrt(np.mean([run.stderr**2 for run in runs], axis=0))
        np.testing.assert_allclose(typical, spread, rtol=0.2)


def test_additive_game_is_exact() -> None:
    weights = [0.5, -1.0, 0.0, 3.25]
    estimate = shapley_values(Additive(weights), n_permutations=4)
    np.testing.assert_allclose(estimate.values, weights, atol=1e-12)
    np.testing.assert_allclose(estimate.stderr, 0, atol=1e-12)


def test_symmetric_players_are_equal_and_a_null_player_is_nothing() -> None:
    def game(masks: np.ndarray) -> np.ndarray:
        return np.sqrt(masks[:, :3].sum(axis=1)) + masks[:, 4] * masks[:, 0]  # 1 and 2 alike, 3 does nothing

    estimate = shapley_values(game, n_players=5, n_permutations=4000)
    assert estimate.values[3] == 0
    assert estimate.stderr[3] == 0
    assert abs(estimate.values[1] - estimate.values[2]) < 5 * np.hypot(*estimate.stderr[1:3])
    assert estimate.stderr[1] > 0


def test_antithetic_orders_need_fewer_masks() -> None:
    """v(S) = |S|² has marginals that grow linearly with arrival, and an order and its reverse cancel that wholly."""

    def game(masks: np.ndarray) -> np.ndarray:
        return masks.sum(axis=1) ** 2.0

    paired = shapley_values(game, n_players=6, n_permutations=20)
    alone = shapley_values(game, n_players=6, n_permutations=20, antithetic=False)
    np.testing.assert_allclose(paired.values, 6.0)
    assert paired.stderr.max() < 1e-12 < alone.stderr.min()


@pytest.mark.parametrize("batch", [1, 17, 8192])
def test_batches_change_nothing_and_the_count_is_exact(batch: int) -> None:
    game = Counting(Table(np.random.default_rng(6).normal(size=1 << 5)))
    told: list[tuple[str, int, int]] = []
    estimate = shapley_values(
        game, n_permutations=30, seed=8, batch=batch, progress=lambda *report: told.append(report)
    )
    whole = shapley_values(game.game, n_permutations=30, seed=8)
    np.testing.assert_allclose(estimate.values, whole.values, atol=1e-12)
    np.testing.assert_allclose(estimate.stderr, whole.stderr, atol=1e-12)
    assert game.asked == estimate.n_evaluations == 30 * 4 + 2
    assert max(len(call) for call in game.calls) <= max(batch, 8)
    assert told[-1] == ("permutations", 30, 30)


def test_a_seed_is_a_sample() -> None:
    game = Table(np.random.default_rng(6).normal(size=1 << 5))
    first, again, other = (shapley_values(game, n_permutations=10, seed=seed).values for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_one_player() -> None:
    assert shapley_values(Table([2.0, 5.0])).values.tolist() == [3.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_permutations": 3}, "even number, at least 4"),
        ({"n_permutations": 2}, "even number, at least 4"),
        ({"n_permutations": 1, "antithetic": False}, "at least 2"),
        ({"batch": 0}, "at least 1 mask"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        shapley_values(Additive([1.0, 2.0]), **options)  # type: ignore[arg-type]


def test_worths_that_are_no_numbers_are_counted() -> None:
    with pytest.raises(RequestError, match="worths are NaN or infinite"):
        shapley_values(Table([0.0, np.nan, 1.0, np.inf, 0.0, 0.0, 0.0, 1.0]), n_permutations=50)
