from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Additive, Counting, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks, published_strata, stratified_masks
from layercoop_fast.masks.types import FlipGame, MarginalGame
from layercoop_fast.shapley.stratified import stratified_marginals
from layercoop_fast.surrogate.published import PublishedSurrogate


def random_surrogate(n: int, seed: int) -> PublishedSurrogate:
    generator = torch.Generator().manual_seed(seed)
    return PublishedSurrogate(
        *(torch.randn(shape, generator=generator) for shape in [(2 * n, n), (2 * n,), (2 * n,), ()])
    )


def brute_force(game, masks: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The definition: put the player in, take it out, one mask after another."""
    values = np.zeros(masks.shape[1])
    for player in range(masks.shape[1]):
        for mask in masks:
            with_player, without = mask.copy(), mask.copy()
            with_player[player], without[player] = True, False
            values[player] += (game(with_player[None])[0] - game(without[None])[0]) / len(masks)
    return values


def in_float64(surrogate: PublishedSurrogate):  # type: ignore[no-untyped-def]
    w, b, v, c = (
        tensor.double()
        for tensor in (
            surrogate.hidden_weight,
            surrogate.hidden_bias,
            surrogate.output_weight,
            surrogate.output_bias,
        )
    )

    def game(masks: np.ndarray) -> np.ndarray:
        hidden = torch.celu(torch.from_numpy(masks).double() @ w.T + b)
        return torch.sigmoid(hidden @ v + c).numpy()

    return game


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_surrogate_equals_brute_force_at_six_players(seed: int) -> None:
    surrogate = random_surrogate(6, seed)
    assert isinstance(surrogate, MarginalGame)
    masks = stratified_masks(6, 40, seed=seed)
    values = stratified_marginals(surrogate, masks, batch=17).values
    np.testing.assert_allclose(values, brute_force(in_float64(surrogate), masks), atol=1e-6)


def test_shortcut_equals_the_plain_path() -> None:
    surrogate = random_surrogate(32, 1)
    masks = stratified_masks(32, 5000, seed=2)
    fast = stratified_marginals(surrogate, masks)
    plain = stratified_marginals(lambda masks: surrogate(masks), masks)
    np.testing.assert_allclose(fast.values, plain.values, atol=1e-6)
    np.testing.assert_allclose(fast.stderr, plain.stderr, atol=1e-6)
    assert fast.n_evaluations == plain.n_evaluations == 5000 * 33


class FlipsOnly:
    """A game without a shortcut to the mean."""

    def __init__(self, surrogate: PublishedSurrogate) -> None:
        self.n_players, self.flips = surrogate.n_players, surrogate.flips

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        raise AssertionError("the shortcut was not taken")


def test_shortcut_to_single_neighbours_equals_the_shortcut_to_the_mean() -> None:
    surrogate, masks = random_surrogate(19, 2), stratified_masks(19, 300, seed=2)
    game = FlipsOnly(surrogate)
    assert isinstance(game, FlipGame)
    assert not isinstance(game, MarginalGame)
    one, other = stratified_marginals(game, masks, batch=128), stratified_marginals(surrogate, masks)
    np.testing.assert_allclose(one.values, other.values, atol=1e-6)
    np.testing.assert_allclose(one.stderr, other.stderr, atol=1e-6)


def test_any_game_equals_brute_force() -> None:
    game = Table(np.random.default_rng(3).normal(size=1 << 6))
    masks = stratified_masks(6, 50, seed=3)
    result = stratified_marginals(game, masks)
    np.testing.assert_allclose(result.values, brute_force(game, masks), atol=1e-12)
    assert result.method == "stratified_marginals"


def test_additive_game_gives_its_weights() -> None:
    weights = np.array([0.5, -1.0, 0.0, 3.25, 0.125, 2.0])
    result = stratified_marginals(Additive(weights), stratified_masks(6, 20))
    np.testing.assert_allclose(result.values, weights, atol=1e-12)
    np.testing.assert_allclose(result.stderr, 0, atol=1e-12)


def test_is_not_the_shapley_value() -> None:
    """v(S) = |S|² has equal Shapley values of n; the mean marginal at the strata's sizes is another number."""
    game = Table(all_masks(8).sum(axis=1) ** 2.0)
    masks = stratified_masks(8, 4000, seed=1)
    assert published_strata(8) == [8 - 1, 6, 5]
    # A mask of k kept: taking out one of the k loses 2k − 1, putting in one of the rest gains 2k + 1.
    expected = np.mean([(k * (2 * k - 1) + (8 - k) * (2 * k + 1)) / 8 for k in masks.sum(axis=1)])
    values = stratified_marginals(game, masks).values
    assert abs(values.mean() - expected) < 1e-9
    assert values.mean() > 10 > 8


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_masks_asked_are_itself_and_its_neighbours(batch: int) -> None:
    """M·(n + 1), where the published code asks 2·M·n: one of "with" and "without" is the mask itself."""
    game = Counting(Table(np.random.default_rng(3).normal(size=1 << 5)))
    masks = stratified_masks(5, 30, seed=3)
    told: list[tuple[str, int, int]] = []
    result = stratified_marginals(game, masks, batch=batch, progress=lambda *report: told.append(report))
    assert game.asked == result.n_evaluations == 30 * 6
    assert max(len(call) for call in game.calls) <= batch * 6
    assert told[-1] == ("marginals", 30, 30)
    np.testing.assert_allclose(result.values, stratified_marginals(game.game, masks).values, atol=1e-12)


def test_stderr_is_that_of_independent_masks() -> None:
    game = Table(np.random.default_rng(3).normal(size=1 << 5))
    runs = [stratified_marginals(game, stratified_masks(5, 100, seed=seed, strata=[3])) for seed in range(300)]
    spread = np.std([run.values for run in runs], axis=0, ddof=1)
    np.testing.assert_allclose(np.mean([run.stderr for run in runs], axis=0), spread, rtol=0.2)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (np.ones((1, 3), dtype=bool), "at least 2 masks"),
        (np.ones((5, 4), dtype=bool), "n_players=4"),
        (np.ones((5, 3)), "dtype bool"),
        ([[True] * 3] * 5, "must be an array"),
    ],
)
def test_bad_masks_are_refused(masks: np.ndarray, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        stratified_marginals(Additive([1.0, 2.0, 3.0]), masks)


def test_worths_that_are_no_numbers_are_counted() -> None:
    with pytest.raises(RequestError, match="of 6 worths are NaN or infinite"):
        stratified_marginals(Table([0.0, np.nan, 1.0, 1.0]), np.ones((2, 2), dtype=bool))
