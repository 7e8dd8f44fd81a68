"""What an evaluation is said to take is what it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.cost_forecast import forecast_cost
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.forward import split_memory
from layercoop_fast.spans import NAMES, Spans
from layercoop_fast.texts.calibration import Calibration

L, W, T = 5, 3, 17


def make_game(family: str = "llama", **options) -> ModelGame:
    ids = torch.randint(3, 256, (W, T), generator=torch.Generator().manual_seed(0))
    return ModelGame(Checkpoint(tiny_model(family, L), tiny_tokenizer(), family), Calibration(ids, "test"), **options)


MASKS = np.random.default_rng(0).random((12, L)) < 0.6


@pytest.mark.parametrize("players", ["layers", "sublayers"])
def test_counts_are_those_of_the_evaluation_and_of_what_is_known(players: str) -> None:
    game = make_game(players=players)
    masks = np.repeat(MASKS, game.n_players // L, axis=1)
    ahead = forecast_cost(game, masks)
    assert ahead.masks == len(masks)
    assert ahead.known == 0
    assert ahead.seconds > 0
    game.evaluate(masks)
    assert (ahead.unique, ahead.layer_evals) == (game.evaluations.unique, game.evaluations.layer_evals)
    assert ahead.layer_evals < ahead.skip < ahead.naive
    more = forecast_cost(game, np.concatenate([masks, ~masks[:2]]))
    assert (more.known, more.unique) == (ahead.unique, 2)
    again = forecast_cost(game, masks)
    assert (again.unique, again.layer_evals, again.gflop, again.seconds) == (0, 0, 0, 0)


def test_flops_are_those_of_the_formula() -> None:
    """Two a weight and token, attention being one fused operation."""
    game = make_game()
    units, head = game.masked.flops
    weights = sum(p.numel() for p in game.masked.skeleton.blocks[0].parameters() if p.dim() == 2)
    assert units.tolist() == [2 * weights * W * T] * L
    # The head runs for the positions that have a next token; for all of them on the model's own path.
    assert head == pytest.approx(2 * game.checkpoint.model.get_output_embeddings().weight.numel() * W * (T - 1))
    assert make_game(block_path="hf").masked.flops[1] == pytest.approx(head * T / (T - 1))
    assert make_game(score_every=4).masked.flops[1] == pytest.approx(head / 4)
    one = np.array([[True, False, False, False, False]])
    assert forecast_cost(game, one).gflop == pytest.approx((L * units[0] + 2 * head) / 1e9)


def test_a_budget_of_states_shows_in_the_forecast() -> None:
    game = make_game()
    game.masked.memory = game.masked.windows.state_bytes
    ahead = forecast_cost(game, MASKS)
    assert ahead.state_bytes == game.masked.windows.state_bytes
    assert ahead.layer_evals > forecast_cost(make_game(), MASKS).layer_evals


@pytest.mark.parametrize("states", [1, 3, 8, 9, 40, 1000])
def test_memory_is_split_between_states_and_activations(states: int) -> None:
    """Up to 8 states have it alone; beyond, both together stay within it, and no call is denied one state."""
    game = make_game()
    state, row = game.masked.windows.state_bytes, game.masked.units.bytes_a_row
    held, rows = split_memory(game.masked.windows, game.masked.units, states * state)
    assert rows >= W * T
    if held > 8:
        assert held * state + rows * row <= states * state
        assert (held + 1) * state + rows * row > states * state
        assert rows * row <= max(states * state // 4, W * T * row)
    else:
        assert held == min(8, states)
    assert make_game(block_path="hf").masked.units.bytes_a_row == 0


def test_masks_of_another_width_are_refused() -> None:
    with pytest.raises(RequestError, match="one column a player"):
        forecast_cost(make_game(), MASKS[:, :3])


@pytest.mark.parametrize(("block_path", "absent"), [("auto", {"the model's own blocks"}), ("hf", {"attention"})])
def test_an_evaluation_is_covered_by_spans(block_path: str, absent: set[str]) -> None:
    game = make_game(block_path=block_path)
    with Spans() as spans:
        game.evaluate(MASKS)
    assert set(spans.seconds) <= set(NAMES)
    assert not absent & set(spans.seconds)
    assert 0 < sum(spans.seconds.values()) <= spans.wall
