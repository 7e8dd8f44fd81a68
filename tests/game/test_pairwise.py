from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game import pairwise
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.masks.types import FlipGame
from layercoop_fast.shapley.exact import exact_shapley


def random_game(n: int, seed: int = 0) -> PairwiseGame:
    rng = np.random.default_rng(seed)
    return PairwiseGame(rng.normal(), rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1))


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_worths_are_the_formula_term_by_term(n: int) -> None:
    game = random_game(n)
    expected = [
        game.bias
        + sum(game.linear[i] * mask[i] for i in range(n))
        + sum(game.pairs[i, j] * mask[i] * mask[j] for i in range(n) for j in range(i + 1, n))
        for mask in all_masks(n)
    ]
    np.testing.assert_allclose(game(all_masks(n)), expected, atol=1e-12)
    assert game(np.empty((0, n), bool)).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_closed_form_equals_the_definition(n: int) -> None:
    game = random_game(n, n)
    np.testing.assert_allclose(game.shapley(), exact_shapley(game).values, atol=1e-12)


def test_flips_equal_flipped_masks() -> None:
    game = random_game(33)
    assert isinstance(game, FlipGame)
    masks = stratified_masks(33, 17, seed=3)
    worths, flipped = game.flips(masks)
    np.testing.assert_allclose(worths, game(masks), atol=1e-12)
    for player in range(33):
        other = masks.copy()
        other[:, player] ^= True
        np.testing.assert_allclose(flipped[:, player], game(other), atol=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    game, masks = random_game(13), stratified_masks(13, 50)
    whole = game(masks)
    monkeypatch.setattr(pairwise, "_BLOCK", 7)
    np.testing.assert_allclose(game(masks), whole, atol=1e-13)


@pytest.mark.parametrize(
    ("linear", "pairs", "words"),
    [
        ([1.0, 2.0], np.zeros((3, 3)), r"weights \[n\] and \[n, n\], not \[2\] and \[3, 3\]"),
        ([], np.zeros((0, 0)), r"not \[0\] and \[0, 0\]"),
        ([1.0, np.nan], np.zeros((2, 2)), "finite weights"),
        ([1.0, 2.0], [[0.0, np.inf], [0.0, 0.0]], "finite weights"),
        ([1.0, 2.0], np.eye(2), "on and below the diagonal"),
        ([1.0, 2.0], np.ones((2, 2)), "on and below the diagonal"),
    ],
)
def test_bad_weights_are_refused(linear: object, pairs: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        PairwiseGame(0.0, linear, pairs)  # type: ignore[arg-type]


def test_masks_of_another_width_are_refused() -> None:
    with pytest.raises(RequestError, match=r"shape \[M, 4\]"):
        random_game(4)(all_masks(3))
