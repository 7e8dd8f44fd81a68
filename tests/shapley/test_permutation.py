from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Additive, Counting, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.shapley import permutation
from layercoop_fast.shapley.control import Control
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


def nearly_pairwise(n: int, noise: float, seed: int = 0) -> tuple[Table, PairwiseGame]:
    """A game and the pairwise one it departs from by `noise`."""
    rng = np.random.default_rng(seed)
    pairwise = PairwiseGame(1.0, rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1))
    return Table(pairwise(all_masks(n)) + noise * rng.normal(size=1 << n)), pairwise


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_a_circle_is_its_orders_one_after_another(n: int) -> None:
    """The definition: 2n orders, each walked by itself; the circles are drawn anew from the seed."""
    game = Table(np.random.default_rng(n).normal(size=1 << n))
    estimate = shapley_values(game, n_permutations=4 * n, seed=5, stratified=True)
    units = []
    for circle in np.random.default_rng(5).permuted(np.tile(np.arange(n), (2, 1)), axis=1):
        total = np.zeros(n)
        for start in range(n):
            for order in (np.roll(circle, -start), np.roll(circle, -start)[::-1]):
                present = 0
                for player in order:
                    total[player] += game.worths[present | 1 << player] - game.worths[present]
                    present |= 1 << player
        units.append(total / (2 * n))
    np.testing.assert_allclose(estimate.values, np.mean(units, axis=0), atol=1e-12)
    np.testing.assert_allclose(estimate.stderr, np.std(units, axis=0, ddof=1) / np.sqrt(2), atol=1e-12)
    assert estimate.n_evaluations == 2 * n * (n - 1) + 2


@pytest.mark.parametrize("batch", [1, 45, 8192])
def test_circles_ask_each_arc_once(batch: int) -> None:
    game = Counting(Table(np.random.default_rng(6).normal(size=1 << 5)))
    estimate = shapley_values(game, n_permutations=30, seed=8, stratified=True, batch=batch)
    np.testing.assert_allclose(
        estimate.values, shapley_values(game.game, n_permutations=30, seed=8, stratified=True).values, atol=1e-12
    )
    assert game.asked == estimate.n_evaluations == 3 * 20 + 2
    assert max(len(call) for call in game.calls) <= max(batch, 20)


def test_a_game_of_the_size_alone_is_exact_on_circles() -> None:
    def game(masks: np.ndarray) -> np.ndarray:
        return np.exp(masks.sum(axis=1) / 2)

    circles = shapley_values(game, n_players=7, n_permutations=28, stratified=True)
    np.testing.assert_allclose(circles.values, (np.exp(3.5) - 1) / 7, rtol=1e-12)
    assert circles.stderr.max() < 1e-12 < shapley_values(game, n_players=7, n_permutations=28).stderr.min()


@pytest.mark.parametrize("stratified", [True, False])
def test_pairwise_games_are_exact_in_the_least_sample(stratified: bool) -> None:
    _, game = nearly_pairwise(6, 0)
    least = 24 if stratified else 4
    estimate = shapley_values(game, n_permutations=least, stratified=stratified)
    np.testing.assert_allclose(estimate.values, game.shapley(), atol=1e-12)
    assert estimate.stderr.max() < 1e-12


CONTROLS = {
    "plain": {"antithetic": False},
    "antithetic": {},
    "circles": {"stratified": True, "n_permutations": 960},
    "fitted": {"antithetic": False, "control": "pairwise"},
    "given": {"antithetic": False, "control": "given"},
    "given to antithetic": {"control": "given"},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_truth_lies_within_two_standard_errors_as_often_as_it_should(name: str) -> None:
    """About 95 % of seeds; 6 players of 150 seeds, so that chance moves the share by 1 % or so."""
    game, _ = nearly_pairwise(6, 1.0)
    truth = exact_shapley(game).values
    options: dict[str, Any] = {"n_permutations": 160, **CONTROLS[name]}
    if options.get("control") == "given":  # of order 3 too, or antithetic orders would know it
        near = Table(game.worths + np.random.default_rng(9).normal(size=64))
        options["control"] = Control(near, exact_shapley(near).values)
    runs = [shapley_values(game, seed=seed, **options) for seed in range(150)]
    inside = np.mean([np.abs(run.values - truth) <= 2 * run.stderr for run in runs])
    assert 0.92 < inside < 0.975
    # And no bias: the mean of all runs is as near as 150 times the masks would be.
    mean = np.mean([run.values for run in runs], axis=0)
    assert (np.abs(mean - truth) < 4 * np.sqrt(np.mean([run.stderr**2 for run in runs], axis=0) / 150)).all()


def test_a_fitted_control_is_unbiased_where_it_fits_worst() -> None:
    """Two orders a half for 29 coefficients: the fit is noise, and each half is judged by the other's."""
    game, _ = nearly_pairwise(7, 1.0)
    options = {"n_permutations": 4, "antithetic": False, "control": "pairwise"}
    runs = np.array([shapley_values(game, seed=seed, **options).values for seed in range(1500)])  # type: ignore[arg-type]
    error = np.abs(runs.mean(axis=0) - exact_shapley(game).values)
    assert (error < 4 * runs.std(axis=0) / np.sqrt(1500)).all()


@pytest.mark.parametrize("control", ["pairwise", "given"])
def test_a_control_that_fits_takes_the_variance_away(control: str) -> None:
    game, pairwise = nearly_pairwise(7, 0.05)
    options: dict[str, Any] = {"n_permutations": 400, "antithetic": False, "seed": 3}
    plain = shapley_values(game, **options)
    helped = shapley_values(game, control=Control.pairwise(pairwise) if control == "given" else control, **options)
    assert (helped.stderr * 5 < plain.stderr).all()
    assert (np.abs(helped.values - exact_shapley(game).values) < 5 * helped.stderr).all()
    assert helped.n_evaluations == plain.n_evaluations
    np.testing.assert_allclose(helped.values.sum(), game.worths[-1] - game.worths[0], atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_the_game_itself_at_any_scale_is_the_perfect_control(scale: float) -> None:
    game = Table(np.random.default_rng(1).normal(size=64))
    scaled = Table(scale * game.worths + 2)
    estimate = shapley_values(game, n_permutations=8, control=Control(scaled, exact_shapley(scaled).values))
    np.testing.assert_allclose(estimate.values, exact_shapley(game).values, atol=1e-9)


def test_a_control_that_does_not_fit_does_no_harm() -> None:
    game, foreign = (Table(np.random.default_rng(seed).normal(size=64)) for seed in (1, 2))
    control = Control(foreign, exact_shapley(foreign).values)
    plain = shapley_values(game, n_permutations=1000)
    helped = shapley_values(game, n_permutations=1000, control=control)
    assert (helped.stderr**2).sum() < 1.05 * (plain.stderr**2).sum()


def test_a_pairwise_control_leaves_antithetic_orders_as_they_were() -> None:
    game, pairwise = nearly_pairwise(6, 1.0)
    plain = shapley_values(game, n_permutations=40)
    helped = shapley_values(game, n_permutations=40, control=Control.pairwise(pairwise))
    np.testing.assert_allclose(helped.values, plain.values, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_permutations": 3}, "even number, at least 4"),
        ({"n_permutations": 2}, "even number, at least 4"),
        ({"n_permutations": 1, "antithetic": False}, "at least 2"),
        ({"n_permutations": 10, "stratified": True}, r"a multiple of 4 \(twice the players\), at least 8"),
        ({"n_permutations": 4, "stratified": True}, "a multiple of 4"),
        ({"n_permutations": 4, "control": Control(Additive([1.0, 2.0]), np.array([1.0, 2.0]))}, "at least 8"),
        ({"control": Control(Additive([1.0]), np.array([1.0]))}, "the control has 1 players, the game 2"),
        ({"control": "pairwise"}, "antithetic=False"),
        ({"control": "cubic"}, 'a Control or "pairwise"'),
        ({"batch": 0}, "at least 1 mask"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        shapley_values(Additive([1.0, 2.0]), **options)


def test_worths_that_are_no_numbers_are_counted() -> None:
    with pytest.raises(RequestError, match="worths are NaN or infinite"):
        shapley_values(Table([0.0, np.nan, 1.0, np.inf, 0.0, 0.0, 0.0, 1.0]), n_permutations=50)


WIDTHS = [1, 15, 16, 17, 31, 32, 33, 80]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"antithetic": False},
    "antithetic": {},
    "circles": {"stratified": True},
    "fitted": {"antithetic": False, "control": "pairwise"},
}


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("way", [name for name in WAYS if name != "fitted"])
def test_an_additive_game_is_exact_at_any_width(n: int, way: str) -> None:
    weights = np.random.default_rng(n).normal(size=n)
    count = 4 * n if way == "circles" else 4
    estimate = shapley_values(Additive(weights), n_permutations=count, **WAYS[way])
    np.testing.assert_allclose(estimate.values, weights, atol=1e-11)
    assert estimate.stderr.max() < 1e-11


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), way=st.sampled_from(list(WAYS)), data=st.data())
def test_axioms_hold_in_any_sample(n: int, seed: int, way: str, data: st.DataObject) -> None:
    """Efficiency and a null player exactly, and linearity, on the same orders."""
    rng = np.random.default_rng(seed)
    null = data.draw(st.integers(0, n - 1))
    rows = np.arange(1 << n) & ~(1 << null)
    first, second = (Table(rng.normal(size=1 << n)[rows]) for _ in range(2))
    both = Table(first.worths - 2 * second.worths)
    options = {"n_permutations": 8 * n, "seed": 3, **WAYS[way]}
    one, other, sum_ = (shapley_values(each, **options).values for each in (first, second, both))
    np.testing.assert_allclose(sum_, one - 2 * other, atol=1e-9)
    np.testing.assert_allclose(one.sum(), first.worths[-1] - first.worths[0], atol=1e-9)
    if way != "fitted":  # a fitted control may give it a share, within the standard error
        assert abs(one[null]) < 1e-12


@pytest.mark.parametrize("way", list(WAYS))
def test_players_alike_are_equal_within_their_errors(way: str) -> None:
    def game(masks: np.ndarray) -> np.ndarray:
        return np.sqrt(masks[:, :3].sum(axis=1)) + masks[:, 3:].all(axis=1) * masks[:, 0]  # 1 and 2 alike

    estimate = shapley_values(game, n_players=5, n_permutations=400, **WAYS[way])
    # Their errors are not independent of each other.
    assert abs(estimate.values[1] - estimate.values[2]) <= 5 * estimate.stderr[1:3].sum() + 1e-12


@pytest.mark.parametrize("way", list(WAYS))
def test_no_way_averages_over_what_is_no_number(way: str) -> None:
    worths = np.ones(32)
    worths[[3, 9, 12, 17, 30]] = np.nan
    with pytest.raises(RequestError, match="worths are NaN or infinite"):
        shapley_values(Table(worths), n_permutations=40, **WAYS[way])


def controlled(game: Table, near: Table, n_permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors by the definition: each half of the orders less β · noise, β of the other."""
    n = game.n_players
    known = exact_shapley(near).values
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
    sampled, noise = np.zeros((2, n_permutations, n))
    for unit, order in enumerate(orders):
        present = 0
        for player in order:
            after = present | 1 << player
            sampled[unit, player] = game.worths[after] - game.worths[present]
            noise[unit, player] = near.worths[after] - near.worths[present] - known[player]
            present = after
    left = sampled.copy()
    for these, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        x = noise[other] - noise[other].mean(axis=0)
        y = sampled[other] - sampled[other].mean(axis=0)
        beta = np.vdot(x, y) / np.vdot(x, x) if x.any() else 0.0
        left[these] -= beta * noise[these]
    return left.mean(axis=0), left.std(axis=0, ddof=1) / np.sqrt(n_permutations)


@pytest.mark.parametrize(("n", "n_permutations"), [(2, 9), (3, 4), (5, 7), (6, 40)])
def test_a_given_control_is_regressed_on_the_other_half(n: int, n_permutations: int) -> None:
    game, near = (Table(np.random.default_rng(10 * n + at).normal(size=1 << n)) for at in (0, 1))
    control = Control(near, exact_shapley(near).values)
    for seed in range(5):
        found = shapley_values(game, n_permutations=n_permutations, antithetic=False, control=control, seed=seed)
        values, stderr = controlled(game, near, n_permutations, seed)
        np.testing.assert_allclose(found.values, values, atol=1e-12)
        np.testing.assert_allclose(found.stderr, stderr, atol=1e-12)


def test_a_given_control_is_unbiased_over_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over every sample of four orders of three players, 6⁴ of them, is the Shapley values: no chance is left.

    Worths are skewed, so that a β out of the units that it is used on would be wrong together with them.
    """
    every = np.array(list(permutations(range(3))))
    game, near = Table([0, 0, 0, 1, 0, 5, 0, 6.0]), Table([0, 0, 1, 0, 0, 4, 0, 3.0])
    control = Control(near, exact_shapley(near).values)
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(permutation.np.random, "default_rng", lambda seed: SimpleNamespace(permuted=_handed(drawn)))
    total = np.zeros(3)
    for rows in product(range(6), repeat=4):
        drawn.append(every[list(rows)])
        total += shapley_values(game, n_permutations=4, antithetic=False, control=control).values
    np.testing.assert_allclose(total / 6**4, exact_shapley(game).values, atol=1e-12)


def _handed(drawn: list[np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *_, **__: drawn.pop()
