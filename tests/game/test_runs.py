"""Runs of one game share what is measured, and each counts and finds what it would by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.search.base import get_method

SMALL = {"windows": 8, "tokens": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("runs") / "model", n_layers=6))


@pytest.fixture(scope="module")
def source(model: str) -> ModelGame:
    game = ModelGame.from_pretrained(model, **SMALL)
    game(np.ones((1, 6), dtype=bool))
    return game


# Methods that measure on all windows, on some of them, by another worth, and by rules that mask nothing.
@pytest.mark.parametrize("method", ["sleb", "coop", "evopress", "finercut", "shortgpt", "taylor", "ppl"])
def test_a_run_is_the_game_by_itself(source: ModelGame, method: str) -> None:
    """Whatever was measured for others before: the same answer and details, at the same cost."""
    alone, run = source.view(apart=True, stored=False), source.run()
    search = get_method(method)
    first, second = search(alone, 2, seed=1), search(run, 2, seed=1)
    assert np.array_equal(first.mask, second.mask)
    assert first.n_masks == second.n_masks
    assert repr(first.details) == repr(second.details)
    assert run.evaluations.token_evals == alone.evaluations.token_evals
    assert run.evaluations.unique == alone.evaluations.unique
    spent = source.evaluations.token_evals
    again = source.run()
    search(again, 2, seed=1)
    assert again.evaluations.token_evals == alone.evaluations.token_evals
    assert source.evaluations.token_evals == spent


def test_what_is_known_on_all_windows_is_known_on_some(model: str) -> None:
    game = ModelGame.from_pretrained(model, **SMALL)
    masks = ~np.eye(6, dtype=bool)
    game.run()(masks)
    spent = game.evaluations.token_evals
    staged = game.run().staged([2, 8])
    scores = staged.window_scores(masks, 2)
    assert np.array_equal(scores.nll, game.window_scores(masks).nll[:, :2])
    # The full model alone, on either part, which shows that windows have the same bits there.
    assert game.evaluations.token_evals - spent == 6 * 8 * 16
    assert staged.game.evaluations.token_evals > 6 * 8 * 16


def test_what_is_known_on_some_windows_is_completed(model: str) -> None:
    game = ModelGame.from_pretrained(model, **SMALL)
    masks = ~np.eye(6, dtype=bool)
    staged = game.run().staged([2, 8])
    staged.window_scores(masks, 2)
    staged.window_scores(masks, 8)
    spent = game.evaluations.token_evals
    worths = game.run()(masks)
    assert game.evaluations.token_evals == spent
    assert np.array_equal(worths, ModelGame.from_pretrained(model, **SMALL)(masks))


def test_a_source_with_a_store_keeps_what_its_runs_ask(model: str, tmp_path: Path) -> None:
    store = tmp_path / "runs.store"
    choices = []
    for spends in (True, False):
        game = ModelGame.from_pretrained(model, store=store, **SMALL)
        run = game.run()
        choices.append((get_method("coop")(run, 2), get_method("evopress")(game.run(), 2), run.evaluations.token_evals))
        # The one-pass rules of coop's seeds are asked again.
        assert (game.evaluations.token_evals > 3 * 6 * 8 * 16) == spends
        game.close()
    (one, two, cost), (again, as_well, same) = choices
    assert np.array_equal(one.mask, again.mask)
    assert np.array_equal(two.mask, as_well.mask)
    assert cost == same
