from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from toy_games import Additive, Redundant

from layercoop_fast.errors import RequestError
from layercoop_fast.game.bootstrap import draw_windows
from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.shapley.exact import exact_shapley
from layercoop_fast.shapley.permutation import shapley_values
from layercoop_fast.surrogate.link import Link
from layercoop_fast.surrogate.ridge import RidgeSurrogate
from layercoop_fast.surrogate.surrogate import Surrogate
from layercoop_fast.surrogate.uncertainty import Intervals, intervals, text_bootstrap
from layercoop_fast.texts.domains import Domains

NO_TEXT = np.empty((0, 3))


class Ensemble:
    """Additive networks: what each adds for each player is known."""

    def __init__(self, weights: np.ndarray) -> None:
        self.members = [Additive(row) for row in weights]
        self.link_game = Additive(weights.mean(axis=0))


def windows(n_masks: int, n: int, n_windows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    masks = rng.random((n_masks, n)) < 0.7
    nll = 3 - masks @ rng.random((n, n_windows)) + 0.1 * rng.normal(size=(n_masks, n_windows))
    return masks, nll, rng.integers(5, 50, size=n_windows)


def test_the_spread_over_networks_is_that_of_their_contributions() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 6))
    found = intervals(Ensemble(weights), exact_shapley)
    np.testing.assert_allclose(found.values, weights.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.ensemble, weights.std(axis=0, ddof=1), atol=1e-12)
    np.testing.assert_array_equal(found.sampling, 0)
    np.testing.assert_array_equal(found.text, 0)
    low, high = found.interval(0.95)
    np.testing.assert_allclose((high - low) / 2, 1.959964 * found.stderr, rtol=1e-6)
    np.testing.assert_allclose((high + low) / 2, found.values, atol=1e-12)


def test_three_sources_add_as_variances() -> None:
    draws = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    found = Intervals(np.zeros(3), np.array([3.0, 0.0, 0.5]), draws, 4 * draws)
    np.testing.assert_allclose(found.stderr, [math.sqrt(9 + 2 + 32), 0, 0.5])


def test_an_order_is_settled_by_the_spread_of_the_difference() -> None:
    """Players 0 and 1 move together, so their order is sure although neither value is; 2 moves against both."""
    values = np.array([0.0, 1.0, 2.0])
    together = np.array([[-3.0, -3.0, 3.0], [0.0, 0.0, 0.0], [3.0, 3.0, -3.0]])
    found = Intervals(values, np.zeros(3), values + together, NO_TEXT)
    assert found.unsettled() == [(1, 2), (0, 2)], "the most open first"
    low, high = found.interval()
    assert high[0] > low[1], "although the intervals of 0 and 1 overlap"
    by_text = Intervals(values, np.zeros(3), np.tile(values, (3, 1)), values + together)
    assert by_text.unsettled() == [(1, 2), (0, 2)]


def test_sampling_errors_count_at_their_worst_and_equal_values_are_never_settled() -> None:
    draws = np.zeros((2, 3))
    found = Intervals(np.array([0.0, 1.0, 1.0]), np.array([0.3, 0.3, 0.0]), draws, NO_TEXT)
    assert found.unsettled(0.95) == [(1, 2), (0, 1)]  # 1 / 0.6 is below 1.96, 1 / √(0.09 + 0.09) would not be
    assert found.unsettled(0.80) == [(1, 2)]
    exact = Intervals(np.array([0.0, 0.0, 1.0]), np.zeros(3), draws, NO_TEXT)
    assert exact.unsettled() == [(0, 1)]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("n_windows", [2, 7])
def test_the_bootstrap_is_that_of_a_fit_to_each_drawing(n_windows: int, order: int) -> None:
    masks, nll, tokens = windows(60, 5, n_windows)
    found = text_bootstrap(masks, nll, tokens, order=order, draws=4, seed=3)
    penalty = RidgeSurrogate.fit_link(masks, -nll @ (tokens / tokens.sum()), Link("identity"), order=order).penalty
    drawn = np.random.default_rng(3).multinomial(n_windows, np.full(n_windows, 1 / n_windows), size=4)
    for values, counts in zip(found, drawn, strict=True):
        mean = np.repeat(-nll, counts, axis=1) @ np.repeat(tokens, counts) / (counts * tokens).sum()
        alone = RidgeSurrogate.fit(masks, mean, order=order, penalty=penalty, scale="identity")
        np.testing.assert_allclose(values, alone.shapley(), atol=1e-10)


def test_the_bootstrap_of_several_texts_draws_within_each() -> None:
    masks, nll, tokens = windows(60, 5, 6)
    texts = Domains(np.array([0, 1, 0, 1, 0, 1]), np.array([1.0, 3.0]))
    found = text_bootstrap(masks, nll, tokens, draws=4, seed=3, domains=texts)
    penalty = RidgeSurrogate.fit_link(masks, -texts.mean(nll), Link("identity"), order=2).penalty
    for values, counts in zip(found, draw_windows(texts, 4, np.random.default_rng(3)), strict=True):
        mean = -(nll * counts)[:, ::2].sum(axis=1) / 3 / 4 - (nll * counts)[:, 1::2].sum(axis=1) / 3 * 3 / 4
        alone = RidgeSurrogate.fit(masks, mean, order=2, penalty=penalty, scale="identity")
        np.testing.assert_allclose(values, alone.shapley(), atol=1e-10)


def test_masks_of_infinite_loss_are_left_out_of_the_bootstrap() -> None:
    masks, nll, tokens = windows(60, 5, 3)
    spoilt, spoilt_masks = np.vstack([nll, np.full((2, 3), np.inf)]), np.vstack([masks, masks[:2]])
    np.testing.assert_allclose(
        text_bootstrap(spoilt_masks, spoilt, tokens, draws=5), text_bootstrap(masks, nll, tokens, draws=5)
    )


def test_intervals_of_a_fit_hold_the_true_contributions() -> None:
    """End to end on a noisy game: of ten players' 99 % intervals at most one misses, and none is absurdly wide."""
    game = Redundant(10, [1, 6])
    masks = stratified_masks(10, 400, seed=5, strata=range(11))
    rng = np.random.default_rng(0)
    worths = game(masks) * np.exp(0.05 * rng.normal(size=400))
    surrogate = Surrogate.fit(masks, worths, ensemble=6)
    found = intervals(surrogate, partial(shapley_values, n_permutations=200))
    truth = exact_shapley(lambda m: np.log(game(m)), 10).values
    low, high = found.interval(0.99)
    assert ((low <= truth) & (truth <= high)).sum() >= 9
    assert (high - low).max() < 0.2
    assert (1, 6) in found.unsettled(), "both cost 0.03"


def test_wrong_requests_are_refused() -> None:
    one = Ensemble(np.ones((1, 3)))
    with pytest.raises(RequestError, match="one network alone has no spread"):
        intervals(one, exact_shapley)
    with pytest.raises(RequestError, match=r"text_draws of 3 players are of shape \[B, 3\], not \[2, 4\]"):
        intervals(Ensemble(np.ones((2, 3))), exact_shapley, text_draws=np.zeros((2, 4)))
    with pytest.raises(RequestError, match="level lies between 0 and 1, not 95"):
        Intervals(np.zeros(3), np.zeros(3), np.zeros((2, 3)), NO_TEXT).interval(95)
    masks, nll, tokens = windows(6, 3, 2)
    with pytest.raises(RequestError, match="6 masks need window_nll"):
        text_bootstrap(masks, nll[:5], tokens)
    with pytest.raises(RequestError, match="at least 2 windows and 2 draws, not 1 and 1000"):
        text_bootstrap(masks, nll[:, :1], tokens[:1])
    with pytest.raises(RequestError, match="none of 6 masks has a finite NLL"):
        text_bootstrap(masks, nll * np.nan, tokens)
