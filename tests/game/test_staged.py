"""Masks on some windows first: the numbers of the whole game, measured once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import Store
from layercoop_fast.texts.calibration import Calibration

L, W, T = 6, 5, 20
FULL = np.ones((1, L), bool)


def game_of(family: str = "llama", **options) -> ModelGame:
    ids = torch.randint(3, 256, (W, T), generator=torch.Generator().manual_seed(0))
    return ModelGame(
        Checkpoint(FAMILIES[family](n_layers=L), tiny_tokenizer(), family), Calibration(ids, "t"), **options
    )


def random_masks(count: int, n: int = L) -> np.ndarray:
    return np.random.default_rng(0).random((count, n)) < 0.6


@pytest.mark.parametrize("utility", ["nll", "kl"])
@pytest.mark.parametrize(
    ("family", "block_path", "options"),
    [
        ("llama", "auto", {}),
        ("llama", "hf", {"score_every": 3}),
        ("qwen3", "auto", {"players": "sublayers", "score_every": 3}),
        ("gpt2", "hf", {}),
    ],
)
def test_a_window_has_the_same_score_among_few_as_among_all(
    family: str, block_path: str, options: dict, utility: str
) -> None:
    """fp32 on the CPU: bitwise, and on parts of one window too."""
    game = game_of(family, block_path=block_path, utility=utility, **options)
    masks = random_masks(8, game.n_players)
    whole = game.window_scores(masks)
    for first, last in ((0, 1), (1, 4), (4, 5)):
        few = game.part(first, last).window_scores(masks)
        np.testing.assert_array_equal(few.nll, whole.nll[:, first:last])
        np.testing.assert_array_equal(few.kl, whole.kl[:, first:last])


@pytest.mark.parametrize("utility", ["ppl_ratio", "kl"])
def test_masks_rise_from_few_windows_to_all_and_no_window_is_measured_twice(utility: str) -> None:
    expected = game_of(utility=utility).window_scores(random_masks(8))
    game = game_of(utility=utility)
    staged, masks = game.staged([1, 3, W]), random_masks(8)
    assert staged.promotes
    for windows, some in ((1, slice(None)), (3, slice(4)), (W, slice(2))):
        found = staged.window_scores(masks[some], windows)
        np.testing.assert_array_equal(found.nll, expected.nll[some, :windows])
        np.testing.assert_array_equal(found.kl, expected.kl[some, :windows])
    assert game.evaluations.unique == 3, "the full model and the two that rose to the end"
    spent = game.evaluations.token_evals
    for windows in (1, 3):
        staged.window_scores(masks[:4], windows)
    np.testing.assert_array_equal(game.window_scores(masks[:2]).nll, expected.nll[:2])
    staged.window_scores(np.concatenate([masks[:2], FULL]), W)
    assert game.evaluations.token_evals == spent, "something was measured again"


def test_rising_costs_the_missing_windows_alone() -> None:
    game = game_of()
    staged = game.staged([2, W])
    assert staged.promotes
    mask = np.array([[1, 0, 1, 1, 1, 1]], bool)
    before = game.evaluations.token_evals
    staged.window_scores(mask, 2)
    assert game.evaluations.token_evals - before == 5 * 2 * T
    staged.window_scores(mask, W)
    assert game.evaluations.token_evals - before == 5 * W * T


def test_worths_at_a_stage_are_the_utility_of_its_windows() -> None:
    game, masks = game_of(), random_masks(4)
    full, few = game.window_scores(FULL).nll[:, :3].mean(), game_of().window_scores(masks).nll[:, :3].mean(axis=1)
    np.testing.assert_allclose(game.staged([3, W]).worths(masks, 3), np.exp(full - few), rtol=1e-12)
    np.testing.assert_array_equal(game.staged([3, W]).worths(masks, W), game_of()(masks))
    np.testing.assert_array_equal(game.staged([W]).worths(masks, W), game_of()(masks))


def test_where_bits_differ_the_game_measures_the_last_stage_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's bf16 products do on some processors: a part's scores are off by a little, and must not be kept."""
    game, masks = game_of(), random_masks(4)
    expected = game_of().window_scores(masks).nll
    staged = game.staged([2, W])
    honest = ModelGame.window_scores

    def rounded(self: ModelGame, asked: np.ndarray):  # type: ignore[no-untyped-def]
        scores = honest(self, asked)
        if self.masked.windows.n_windows < W:
            scores.nll[:] = np.nextafter(scores.nll, np.inf)
        return scores

    monkeypatch.setattr(ModelGame, "window_scores", rounded)
    assert not staged.promotes
    np.testing.assert_array_equal(staged.window_scores(masks, W).nll, expected)
    few = staged.window_scores(masks, 2).nll
    assert (few > expected[:, :2]).all(), "numbers of a part and of the whole stand side by side"
    np.testing.assert_array_equal(game.evaluate(masks).window_nll, expected)


def test_another_worth_of_the_same_game() -> None:
    game, masks = game_of(), random_masks(5)
    view = game.with_utility("kl")
    np.testing.assert_array_equal(view(masks), game_of(utility="kl")(masks))
    np.testing.assert_array_equal(game(masks), game_of()(masks))
    assert np.isnan(game.window_scores(masks).kl).all(), "the game itself measures no divergence"
    assert view.with_utility("kl") is view
    assert view.evaluations is game.evaluations
    assert view.fingerprints == game_of(utility="kl").fingerprints


def test_parts_and_views_share_the_store(tmp_path: Path) -> None:
    masks = random_masks(4)
    game = game_of(store=tmp_path / "s", utility="ppl_ratio")
    game.with_utility("kl").staged([2, W]).worths(masks, W)
    game.with_utility("kl").staged([2, W]).worths(masks[:1], 2)
    game.close()
    with Store(tmp_path / "s") as store:
        held = store.games()
    assert [(one.fingerprints["utility"], len(one.window_tokens)) for one in held] == [
        ("ppl_ratio", W),
        ("kl", W),
        ("kl", 2),
        ("kl", W - 2),
    ]
    assert all(one.masks for one in held[1:])
    again = game_of(store=tmp_path / "s")
    again.with_utility("kl").staged([2, W]).worths(masks, W)
    assert again.evaluations.token_evals == 0
    again.close()


def test_what_is_wrong_is_said() -> None:
    game = game_of()
    for ends in ([], [2], [2, 2, W], [0, W], [3, 2, W]):
        with pytest.raises(RequestError, match=f"growing numbers of windows, the last all {W}"):
            game.staged(ends)
    with pytest.raises(RequestError, match="stages have 2, 5 windows, not 3"):
        game.staged([2, W]).window_scores(FULL, 3)
    with pytest.raises(RequestError, match="windows 2 to 5 of a game of 5 windows are not there"):
        game.part(2, 6)
