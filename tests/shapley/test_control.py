from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.shapley import control
from layercoop_fast.shapley.control import Control, check_control, fit_pairwise


def random_game(n: int, seed: int = 0) -> PairwiseGame:
    rng = np.random.default_rng(seed)
    return PairwiseGame(rng.normal(), rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1))


def test_fit_finds_the_game_that_made_the_worths() -> None:
    game = random_game(9)
    fitted = fit_pairwise(all_masks(9), game(all_masks(9)))
    np.testing.assert_allclose(fitted.linear, game.linear, atol=0.02)  # the ridge pulls a thousandth
    np.testing.assert_allclose(fitted.pairs, game.pairs, atol=0.02)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fit_equals_ridge_on_listed_features(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable form: centred columns, one system; on more blocks than one."""
    masks = stratified_masks(n, 53, seed=1, strata=range(n + 1))
    worths = np.random.default_rng(2).normal(size=53)
    columns = [masks[:, i] for i in range(n)]
    columns += [masks[:, i] & masks[:, j] for i in range(n) for j in range(i + 1, n)]
    x = np.stack(columns, axis=1) - np.mean(columns, axis=1)
    ridge = 1e-3 * np.trace(x.T @ x) / x.shape[1]
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (worths - worths.mean()))
    monkeypatch.setattr(control, "_BLOCK", 10)
    fitted = fit_pairwise(masks, worths)
    np.testing.assert_allclose(fitted(masks), worths.mean() + x @ weights, atol=1e-10)


def test_pairwise_control_has_the_closed_form() -> None:
    game = random_game(5)
    np.testing.assert_array_equal(Control.pairwise(game).values, game.shapley())


def test_bad_controls_are_refused() -> None:
    with pytest.raises(RequestError, match="finite float64"):
        Control(random_game(2), np.array([0.0, np.nan]))
    with pytest.raises(RequestError, match="the control has 3 players, the game 4"):
        check_control(Control.pairwise(random_game(3)), 4)
