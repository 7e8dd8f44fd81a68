from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from toy_games import Redundant

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.masks.types import FlipGame
from layercoop_fast.shapley.exact import exact_shapley
from layercoop_fast.surrogate.ridge import RidgeSurrogate, best_penalty, weighted_lines


def pairs_of(n: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, n)) < 0.7
    return masks, np.exp(masks @ rng.normal(size=n) + rng.normal(size=count) * 0.1)


def plain_fit(masks: np.ndarray, targets: np.ndarray, penalty: float, order: int, at: np.ndarray) -> np.ndarray:
    """Predictions at the masks `at` of the ridge by its definition: rows stacked, one unpenalised intercept."""
    p = masks.mean(axis=0)

    def columns(m: np.ndarray) -> np.ndarray:
        d = m - p
        pairs = [d[:, i] * d[:, j] for i, j in combinations(range(m.shape[1]), 2)] if order == 2 else []
        return np.column_stack([np.ones(len(m)), d, *pairs])

    z = columns(masks)
    cost = np.r_[0.0, np.ones(masks.shape[1]), np.full(z.shape[1] - 1 - masks.shape[1], 0.3)]
    rows, right = np.vstack([z, np.diag(np.sqrt(penalty * cost))]), np.r_[targets, np.zeros(z.shape[1])]
    return columns(at) @ np.linalg.lstsq(rows, right, rcond=None)[0]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (1, 5), (2, 7), (7, 13), (7, 300)])
def test_is_the_penalised_least_squares_fit(n: int, count: int, order: int) -> None:
    masks, worths = pairs_of(n, count)
    ridge = RidgeSurrogate.fit(masks, worths, order=order, penalty=0.7)
    at = all_masks(n)
    expected = plain_fit(masks, np.log(worths), 0.7, order, at)
    np.testing.assert_allclose(ridge.values(at), expected, atol=1e-10)
    np.testing.assert_allclose(ridge(at), np.exp(expected), rtol=1e-9)
    assert ridge(at[:0]).shape == (0,)


@pytest.mark.parametrize("count", [9, 60])
def test_the_penalty_is_that_of_the_least_error_left_out(count: int) -> None:
    """Against refitting without each pair: both branches, fewer pairs than coefficients and more."""
    rng = np.random.default_rng(count)
    z, y = rng.normal(size=(count, 12)), rng.normal(size=count)
    y += z[:, 0]

    def left_out(penalty: float) -> float:
        error = 0.0
        for row in range(count):
            keep = np.arange(count) != row
            zk, yk = z[keep] - z[keep].mean(axis=0), y[keep] - y[keep].mean()
            theta = np.linalg.solve(zk.T @ zk + penalty * np.eye(12), zk.T @ yk)
            error += (y[row] - y[keep].mean() - (z[row] - z[keep].mean(axis=0)) @ theta) ** 2
        return error

    best = best_penalty(z, y)
    grid = np.geomspace(1e-3, 1e3, 25)
    assert best == pytest.approx(grid[np.argmin([left_out(penalty) for penalty in grid])])
    assert grid[0] < best


def test_weighted_lines_are_ridges_of_repeated_pairs() -> None:
    """A pair that counts twice is there twice, one that counts 0 times is not, and each column has its own targets."""
    masks, worths = pairs_of(5, 30)
    rng = np.random.default_rng(4)
    targets, counts = np.log(worths)[:, None] + rng.normal(size=(30, 3)), rng.poisson(1.0, (30, 3)).astype(np.uint8)
    weight, intercept = weighted_lines(masks, targets, counts, 0.7)
    at = all_masks(5)
    for e in range(3):
        expected = plain_fit(masks.repeat(counts[:, e], axis=0), targets[:, e].repeat(counts[:, e]), 0.7, 1, at)
        np.testing.assert_allclose(intercept[e] + at @ weight[e], expected, atol=1e-10)


def test_finds_a_pairwise_game_exactly() -> None:
    rng = np.random.default_rng(1)
    w, pair = rng.normal(size=6), np.triu(rng.normal(size=(6, 6)), 1)
    masks = all_masks(6)
    worths = masks @ w + ((masks @ pair) * masks).sum(axis=1) - 50.0
    ridge = RidgeSurrogate.fit(masks, worths, penalty=1e-9)
    assert ridge.link.scale == "identity"
    np.testing.assert_allclose(ridge.weight, w, atol=1e-6)
    np.testing.assert_allclose(ridge.pair_weight, pair + pair.T, atol=1e-6)
    assert ridge.intercept == pytest.approx(-50, abs=1e-6)
    assert ridge.r2(masks, worths) == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2])
def test_shapley_values_in_closed_form_are_the_exact_ones(order: int) -> None:
    masks, worths = pairs_of(7, 90)
    ridge = RidgeSurrogate.fit(masks, worths, order=order)
    expected = exact_shapley(ridge.values, 7).values
    np.testing.assert_allclose(ridge.shapley(), expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_shapley_values_of_other_targets_are_those_of_other_fits(order: int) -> None:
    masks, worths = pairs_of(5, 40)
    ridge = RidgeSurrogate.fit(masks, worths, order=order)
    targets = np.random.default_rng(3).normal(size=(40, 3))
    several = ridge.shapley_of(masks, targets)
    for column in range(3):
        alone = RidgeSurrogate.fit(masks, targets[:, column], order=order, penalty=ridge.penalty, scale="identity")
        np.testing.assert_allclose(several[column], alone.shapley(), atol=1e-12)


def test_flips_are_the_neighbours_worths() -> None:
    masks, worths = pairs_of(7, 90)
    ridge = RidgeSurrogate.fit(masks, worths)
    assert isinstance(ridge, FlipGame)
    own, flipped = ridge.flips(masks)
    np.testing.assert_allclose(own, ridge(masks), rtol=1e-12)
    for player in range(7):
        neighbours = masks.copy()
        neighbours[:, player] ^= True
        np.testing.assert_allclose(flipped[:, player], ridge(neighbours), rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_updates_are_the_fit_to_all_pairs(order: int) -> None:
    masks, worths = pairs_of(6, 120)
    ridge = RidgeSurrogate.fit(masks[:50], worths[:50], order=order, penalty=0.4)
    updated = ridge.update(masks[50:51], worths[50:51]).update(masks[51:], worths[51:])
    p = masks[:50].mean(axis=0)
    np.testing.assert_array_equal(updated.centre, p)
    d = masks - p
    z = np.column_stack(
        [np.ones(120), d, *([d[:, i] * d[:, j] for i, j in combinations(range(6), 2)] if order == 2 else [])]
    )
    cost = np.r_[0.0, np.ones(6), np.full(z.shape[1] - 7, 0.3)]
    theta = np.linalg.solve(z.T @ z + 0.4 * np.diag(cost), z.T @ np.log(worths))
    np.testing.assert_allclose(updated.values(masks), z @ theta, atol=1e-10)
    assert ridge.values(masks[:1]) != pytest.approx(updated.values(masks[:1])), "the old one stays as it was"


def test_pairs_are_worth_having_where_players_interact() -> None:
    game = Redundant(12, [1, 6, 9])
    masks, unseen = stratified_masks(12, 400, seed=5), stratified_masks(12, 400, seed=6)
    linear, pairwise = (RidgeSurrogate.fit(masks, game(masks), order=order) for order in (1, 2))
    assert 0.9 < linear.r2(unseen, game(unseen)) < 0.9995 < pairwise.r2(unseen, game(unseen))


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    masks, worths = pairs_of(5, 40)
    ridge = RidgeSurrogate.fit(masks, worths)
    ridge.save(tmp_path / "ridge.safetensors")
    loaded = RidgeSurrogate.load(tmp_path / "ridge.safetensors")
    np.testing.assert_array_equal(loaded(masks), ridge(masks))
    np.testing.assert_array_equal(loaded.update(masks, worths)(masks), ridge.update(masks, worths)(masks))
    (tmp_path / "ridge.safetensors").write_bytes(b"no")
    with pytest.raises(RequestError, match=r"cannot be read|damaged safetensors file"):
        RidgeSurrogate.load(tmp_path / "ridge.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 3}, "order is 1"),
        ({"penalty": 0.0}, "penalty must be a positive number"),
        ({"penalty": np.nan}, "penalty must be a positive number"),
        ({"scale": "probit"}, "unknown scale"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        RidgeSurrogate.fit(*pairs_of(3, 10), **options)  # type: ignore[arg-type]


def test_bad_pairs_are_refused() -> None:
    masks = np.ones((3, 2), dtype=bool)
    with pytest.raises(RequestError, match="2 of 3 worths are NaN or infinite: drop those pairs"):
        RidgeSurrogate.fit(masks, np.array([np.nan, 1.0, np.inf]))
    with pytest.raises(RequestError, match="at least one pair"):
        RidgeSurrogate.fit(masks[:0], np.empty(0))
    with pytest.raises(RequestError, match="more than 10,000"):
        RidgeSurrogate.fit(np.ones((3, 150), dtype=bool), np.ones(3))
    with pytest.raises(RequestError, match=r"shape \[M, 2\]"):
        RidgeSurrogate.fit(masks, np.ones(3))(np.ones((1, 3), dtype=bool))
