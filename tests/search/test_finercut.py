"""Against a plain loop that removes halves of blocks by hand and compares all logits."""

from __future__ import annotations

import numpy as np
import torch
from tiny_models import FAMILIES, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.search import finercut, sleb
from layercoop_fast.texts.calibration import Calibration

L = 4


def game_of(utility: str) -> ModelGame:
    ids = torch.randint(3, 256, (2, 16), generator=torch.Generator().manual_seed(1))
    checkpoint = Checkpoint(FAMILIES["llama"](n_layers=L), tiny_tokenizer(), "llama")
    return ModelGame(checkpoint, Calibration(ids, "t"), players="sublayers", utility=utility)


def log_probabilities(game: ModelGame, removed: set[int]) -> torch.Tensor:
    """The model with the output projections of the removed halves silenced by hooks."""
    handles = []
    for unit in removed:
        block = game.masked.skeleton.blocks[unit // 2]
        projection = block.mlp.down_proj if unit % 2 else block.self_attn.o_proj
        handles.append(projection.register_forward_hook(lambda _, __, out: torch.zeros_like(out)))
    with torch.inference_mode():
        logits = game.checkpoint.model(input_ids=game.calibration.ids).logits[:, :-1]
    for handle in handles:
        handle.remove()
    return logits.double().log_softmax(-1)


def test_is_greedy_on_the_divergence_of_the_output() -> None:
    game = game_of("ppl_ratio")
    full = log_probabilities(game, set())
    removed: list[int] = []
    for _ in range(4):
        divergence = {}
        for unit in set(range(2 * L)) - set(removed):
            log_q = log_probabilities(game, {*removed, unit})
            divergence[unit] = float((full.exp() * (full - log_q)).sum(-1).mean())
        removed.append(min(divergence, key=divergence.__getitem__))
    choice = finercut.search(game, 4)
    assert choice.details["greedy_order"] == removed
    assert np.flatnonzero(~choice.mask).tolist() == sorted(removed)
    np.testing.assert_allclose(-choice.details["greedy_worths"][-1], divergence[removed[-1]], rtol=1e-4)
    assert sleb.search(game_of("nll"), 4).details["greedy_order"] != removed, "the text would have said the same"
