from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Additive, Counting, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.shapley.control import Control
from layercoop_fast.shapley.exact import exact_shapley
from layercoop_fast.shapley.regression import kernel_shap


def random_table(n: int, seed: int = 0) -> Table:
    return Table(np.random.default_rng(seed).normal(size=1 << n))


def random_pairwise(n: int, seed: int = 0) -> PairwiseGame:
    rng = np.random.default_rng(seed)
    return PairwiseGame(1.0, rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1))


class Wavy:
    """A smooth game of every order at any number of players."""

    def __init__(self, n_players: int, seed: int = 0) -> None:
        self.n_players = n_players
        self.directions = np.random.default_rng(seed).normal(size=(n_players, 3)) / np.sqrt(n_players)

    def __call__(self, masks: Masks) -> Floats:
        worths: Floats = np.exp(np.sin(2 * masks @ self.directions)).sum(axis=1)
        return worths


def least_squares(masks: Masks, worths: Floats) -> Floats:
    """The readable form: kernel weights by their formula, the constraint as a Lagrange multiplier.

    Rows 0 and 1 are none and all. Each row stands for C(n, s) / (asked of its size) coalitions; a pair is asked
    whole, so that counting sizes s and n − s together changes nothing.
    """
    n = masks.shape[1]
    sizes = masks.sum(axis=1)
    rows = slice(2, None)
    asked = np.bincount(sizes[rows], minlength=n + 1)
    kernel = [(n - 1) / (comb(n, s) * s * (n - s)) for s in sizes[rows]]
    weights = np.array([mu * comb(n, s) / asked[s] for mu, s in zip(kernel, sizes[rows], strict=True)])
    x, y = masks[rows].astype(np.float64), worths[rows] - worths[0]
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = x.T @ (weights[:, None] * x)
    system[:n, n] = system[n, :n] = 1
    return np.linalg.solve(system, np.append(x.T @ (weights * y), worths[1] - worths[0]))[:n]


@pytest.mark.parametrize("sampling", ["leverage", "kernel"])
@pytest.mark.parametrize(("n", "budget"), [(5, 26), (7, 61), (8, 100), (13, 200), (17, 150), (33, 333)])
def test_equals_the_least_squares_problem_on_the_masks_asked(n: int, budget: int, sampling: Any) -> None:
    game = Counting(Wavy(n))
    estimate = kernel_shap(game, budget=budget, sampling=sampling, interactions=False, seed=3)
    masks = np.concatenate(game.calls)
    assert len(masks) == estimate.n_evaluations
    assert budget - 1 <= len(masks) <= budget
    assert len(np.unique(masks, axis=0)) == len(masks)
    np.testing.assert_allclose(estimate.values, least_squares(masks, game.game(masks)), atol=1e-9)
    half = (len(masks) - 2) // 2
    np.testing.assert_array_equal(masks[2 : 2 + half], ~masks[2 + half :])


@pytest.mark.parametrize("interactions", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 10])
def test_the_budget_of_all_masks_is_exact(n: int, interactions: bool) -> None:
    game = Counting(random_table(n, n))
    estimate = kernel_shap(game, budget=2**n + 5, interactions=interactions)
    np.testing.assert_allclose(estimate.values, exact_shapley(game.game).values, atol=1e-10)
    assert estimate.stderr.tolist() == [0.0] * n
    assert estimate.n_evaluations == game.asked == 2**n
    assert estimate.method == "kernel_shap"


def test_a_sample_that_leaves_a_player_open_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 pairs of 8 players, where about one sample in some hundreds has too small a rank."""
    ranks = []
    for seed in range(400):
        game = Counting(Wavy(8))
        kernel_shap(game, budget=34, seed=seed, interactions=False)
        ranks.append(np.linalg.matrix_rank(game.calls[1] - game.calls[1].mean(axis=1, keepdims=True)))
    assert set(ranks) == {7}
    monkeypatch.setattr("layercoop_fast.shapley.regression._ATTEMPTS", 1)
    with pytest.raises(RequestError, match="1 samples of 16 rows did not determine all 8 players"):
        for seed in range(400):
            kernel_shap(Wavy(8), budget=34, seed=seed, interactions=False)


@pytest.mark.parametrize("n", [9, 10, 40])
def test_sizes_are_shared_as_said_and_small_ones_asked_whole(n: int) -> None:
    budget = 202 if n < 40 else 802
    for sampling in ("leverage", "kernel"):
        game = Counting(Wavy(n))
        kernel_shap(game, budget=budget, sampling=sampling, interactions=False)  # type: ignore[arg-type]
        counts = np.bincount(np.concatenate(game.calls).sum(axis=1), minlength=n + 1)[1:-1]
        sizes = np.arange(1, n)
        whole = counts == [comb(n, int(size)) for size in sizes]
        share = 1 / (sizes * (n - sizes)) if sampling == "kernel" else np.ones(n - 1)
        assert whole[0] == whole[-1] == (n < 40 or sampling == "kernel")
        expected = share[~whole] * counts[~whole].sum() / share[~whole].sum()
        assert np.abs(counts[~whole] - expected).max() < 2  # whole pairs, and of half the players each is two
        assert (counts[~whole] >= 2).all()


def test_draws_of_a_size_are_uniform_and_distinct() -> None:
    """Chi-square on the 70 coalitions of 4 of 8, 35 pairs; 34 degrees of freedom, exceeded once in 10,000 at 74."""
    counts = np.zeros(256)
    for seed in range(400):
        game = Counting(Wavy(8))
        kernel_shap(game, budget=34, seed=seed, interactions=False)
        asked = np.concatenate(game.calls)
        counts += np.bincount(asked[asked.sum(axis=1) == 4] @ (1 << np.arange(8)), minlength=256)
    fours = counts[all_masks(8).sum(axis=1) == 4]
    pairs = fours[:35]
    np.testing.assert_array_equal(pairs, fours[::-1][:35])  # a coalition and its complement
    expected = pairs.mean()
    # Without replacement within a seed: the spread is a little below that of independent draws.
    assert 10 < ((pairs - expected) ** 2 / expected).sum() < 74


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": "kernel"},
        {"interactions": False},
        {"control": True},
        {"control": True, "interactions": False},
        {"budget": 60},
    ],
    ids=["leverage", "kernel", "plain", "control", "plain control", "small budget"],
)
def test_truth_lies_within_two_standard_errors_as_often_as_it_should(options: dict[str, Any]) -> None:
    """About 95 % of seeds; 8 players of 100 seeds."""
    game = random_table(8, 1)
    options = {"budget": 130} | options
    if options.get("control"):
        near = Table(game.worths + random_table(8, 2).worths)
        options["control"] = Control(near, exact_shapley(near).values)
    truth = exact_shapley(game).values
    runs = [kernel_shap(game, seed=seed, **options) for seed in range(100)]
    inside = np.mean([np.abs(run.values - truth) <= 2 * run.stderr for run in runs])
    assert 0.92 < inside < 0.985
    spread = np.std([run.values for run in runs], axis=0, ddof=1)
    typical = np.sqrt(np.mean([run.stderr**2 for run in runs], axis=0))
    np.testing.assert_allclose(typical, spread, rtol=0.35)


@pytest.mark.parametrize("n", [2, 6, 15, 80])
def test_pairs_make_a_pairwise_game_exact(n: int) -> None:
    game = random_pairwise(n)
    estimate = kernel_shap(game, budget=4 * n + 2)
    np.testing.assert_allclose(estimate.values, game.shapley(), atol=1e-9)
    assert estimate.stderr.max() < 1e-9


def test_a_control_that_fits_takes_the_variance_away() -> None:
    wavy = random_table(10, 1)
    game = Table(wavy.worths + 0.02 * random_table(10, 2).worths)
    control = Control(wavy, exact_shapley(wavy).values)
    plain, helped = (kernel_shap(game, budget=200, control=one) for one in (None, control))
    assert (helped.stderr < plain.stderr / 10).all()
    assert (np.abs(helped.values - exact_shapley(game).values) < 5 * helped.stderr).all()
    perfect = kernel_shap(Table(-3 * wavy.worths + 2), budget=60, control=control)
    np.testing.assert_allclose(perfect.values, -3 * control.values, atol=1e-9)


def test_a_control_that_the_fit_knows_already_changes_nothing() -> None:
    game = random_table(7, 1)
    plain = kernel_shap(game, budget=50)
    for control in (random_pairwise(7), PairwiseGame(0.0, np.ones(7), np.zeros((7, 7)))):
        helped = kernel_shap(game, budget=50, control=Control.pairwise(control))
        np.testing.assert_allclose(helped.values, plain.values, atol=1e-9)


games = st.tuples(st.integers(2, 7), st.integers(0, 2**32 - 1)).map(lambda drawn: random_table(*drawn))


@settings(max_examples=40, deadline=None)
@given(game=games, interactions=st.booleans(), sampling=st.sampled_from(["leverage", "kernel"]))
def test_values_sum_to_all_minus_none(game: Table, interactions: bool, sampling: Any) -> None:
    budget = 4 * game.n_players + 2
    estimate = kernel_shap(game, budget=budget, interactions=interactions, sampling=sampling)
    np.testing.assert_allclose(estimate.values.sum(), game.worths[-1] - game.worths[0], atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(game=games, factor=st.floats(-3, 3), seed=st.integers(0, 99))
def test_values_are_linear_in_the_game(game: Table, factor: float, seed: int) -> None:
    other = random_table(game.n_players, 5)
    both = Table(game.worths + factor * other.worths)
    budget = 4 * game.n_players + 2
    first, second, sum_ = (
        kernel_shap(each, budget=budget, seed=seed, interactions=False).values for each in (game, other, both)
    )
    np.testing.assert_allclose(sum_, first + factor * second, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 17, 8192])
def test_batches_change_nothing(batch: int) -> None:
    game = Counting(random_table(7))
    told: list[tuple[str, int, int]] = []
    estimate = kernel_shap(game, budget=60, batch=batch, progress=lambda *report: told.append(report))
    np.testing.assert_array_equal(estimate.values, kernel_shap(game.game, budget=60).values)
    assert max(len(call) for call in game.calls[1:]) <= batch
    assert told[-1] == ("coalitions", 58, 58)


def test_a_seed_is_a_sample() -> None:
    game = random_table(9)
    first, again, other = (kernel_shap(game, budget=60, seed=seed).values for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 25}, "at least 26 masks for 6 players, not 25"),
        ({"budget": 40, "batch": 0}, "at least 1 mask"),
        ({"budget": 40, "sampling": "uniform"}, '"leverage" or "kernel"'),
        ({"budget": 40, "control": Control(Additive([1.0]), np.ones(1))}, "the control has 1 players, the game 6"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        kernel_shap(Additive(np.ones(6)), **options)


def test_worths_that_are_no_numbers_are_counted() -> None:
    worths = np.zeros(64)
    worths[1] = np.nan
    with pytest.raises(RequestError, match="1 of 62 worths are NaN or infinite"):
        kernel_shap(Table(worths), budget=64)


@pytest.mark.parametrize("sampling", ["leverage", "kernel"])
@pytest.mark.parametrize(("n", "budget"), [(12, 400), (33, 1000)])
def test_interactions_take_variance_away(n: int, budget: int, sampling: Any) -> None:
    """A product of factors, as perplexity ratios behave; values by the integral over the share that came before."""
    left = np.exp(-np.random.default_rng(n).gamma(1.0, 0.3, size=n))
    nodes, weights = np.polynomial.legendre.leggauss(n)
    factors = (1 + nodes[:, None]) / 2 * (1 - left) + left
    truth = np.array([(1 - left[i]) * (weights / 2 @ np.delete(factors, i, axis=1).prod(axis=1)) for i in range(n)])

    def game(masks: Masks) -> Floats:
        worths: Floats = np.where(masks, 1.0, left).prod(axis=1)
        return worths

    options: dict[str, Any] = {"n_players": n, "budget": budget, "sampling": sampling, "seed": 1}
    plain, helped = (kernel_shap(game, interactions=flag, **options) for flag in (False, True))
    assert np.linalg.norm(helped.values - truth) * 3 < np.linalg.norm(plain.values - truth)
    assert np.linalg.norm(helped.stderr) * 3 < np.linalg.norm(plain.stderr)
    assert np.linalg.norm(helped.values - truth) < 2.5 * np.linalg.norm(helped.stderr)
    assert helped.n_evaluations == plain.n_evaluations


def test_symmetric_players_and_a_null_player_within_their_errors() -> None:
    def game(masks: Masks) -> Floats:
        worths: Floats = np.sqrt(masks[:, :3].sum(axis=1)) + masks[:, 4:].all(axis=1) * masks[:, 0]
        return worths  # players 1 and 2 are alike, 3 does nothing

    estimate = kernel_shap(game, n_players=15, budget=600)
    assert abs(estimate.values[3]) <= 5 * estimate.stderr[3]
    assert abs(estimate.values[1] - estimate.values[2]) <= 5 * np.hypot(*estimate.stderr[1:3])
    exact = exact_shapley(game, 15).values
    assert (np.abs(estimate.values - exact) <= 5 * estimate.stderr).all()


@pytest.mark.parametrize("n", [15, 16, 17, 31, 32, 33, 80])
@pytest.mark.parametrize("interactions", [True, False])
def test_an_additive_game_is_exact_at_any_width(n: int, interactions: bool) -> None:
    weights = np.random.default_rng(n).normal(size=n)
    estimate = kernel_shap(Additive(weights), budget=4 * n + 2, interactions=interactions)
    np.testing.assert_allclose(estimate.values, weights, atol=1e-10)


def test_as_many_rows_as_interactions_are_not_fitted_through() -> None:
    """768 pairs for C(12, 3) + C(12, 5) = 1012 terms, in a game of every degree: too weak a ridge explodes."""
    costs = np.sort(np.random.default_rng(12).gamma(2.0, size=12))

    def game(masks: Masks) -> Floats:
        worths: Floats = (masks * costs).max(axis=1)
        return worths

    truth = np.cumsum(np.diff(costs, prepend=0) / np.arange(12, 0, -1))  # each stretch is shared by those who use it
    plain, helped = (kernel_shap(game, n_players=12, budget=1536, interactions=flag) for flag in (False, True))
    assert np.linalg.norm(helped.values - truth) * 2 < np.linalg.norm(plain.values - truth)
