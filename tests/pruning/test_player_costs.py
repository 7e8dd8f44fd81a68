from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.pruning import player_costs
from layercoop_fast.pruning.player_costs import count_bytes, count_parameters, measure_seconds, read_seconds
from layercoop_fast.texts.calibration import Calibration


def game(players: object = "layers", family: str = "llama", **config: object) -> ModelGame:
    ids = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    checkpoint = Checkpoint(FAMILIES[family](n_layers=4, **config), tiny_tokenizer(), family)
    return ModelGame(checkpoint, Calibration(ids, "t"), players=players)  # type: ignore[arg-type]


def test_parameters_and_bytes_add_up_to_the_model() -> None:
    for played in (game(), game([[0, 1], [3]]), game(family="qwen3")):  # the last ties embedding and head
        costs, total = count_parameters(played), sum(p.numel() for p in played.masked.skeleton.model.parameters())
        assert costs.total == total
        assert count_bytes(played).total == 4 * total
    halves = count_parameters(game("sublayers"))
    norms = 2 * 48  # of each block, which belong to neither half
    np.testing.assert_array_equal(halves.players.reshape(4, 2).sum(axis=1) + norms, count_parameters(game()).players)
    assert count_parameters(game()).equal
    assert not halves.equal
    with pytest.raises(RequestError, match="fit= needs whole layers"):
        count_bytes(game("sublayers"))


def test_bytes_are_of_each_weight_in_its_own_dtype() -> None:
    played = game()
    model, before = played.masked.skeleton.model, count_bytes(played)
    model.model.layers[1].mlp.to(torch.bfloat16)
    after = count_bytes(played)
    halved = sum(p.numel() for p in model.model.layers[1].mlp.parameters()) * 2
    np.testing.assert_array_equal(before.players - after.players, [0, halved, 0, 0])
    assert (after.rest, after.total) == (before.rest, before.total - halved)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_layers_alike_cost_alike(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure_seconds(game(), phase)
    assert measured.equal
    assert (measured.players > 0).all()
    assert measured.rest > 0
    # With a clock that counts calls of blocks: two halves of a block and pairs of blocks cost in proportion.
    monkeypatch.setattr(player_costs, "_times", lambda game, call: [call() is not None and 1.0])
    np.testing.assert_array_equal(measure_seconds(game([[0, 1], [3]]), phase).players, [2, 1])
    assert measure_seconds(game([[0, 1], [3]]), phase).rest == 2.0  # layer 2 and the head


def test_dense_and_sparse_layers_are_not_alike() -> None:
    costs = measure_seconds(game(family="deepseek_v3"))
    assert costs.players[0] == costs.players[1] != costs.players[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", 'must hold {"players": \\[2 numbers\\]'),
        ('{"players": [1, 2, 3]}', "it has 3 players"),
        ('{"players": [1, -2]}', "none of them negative"),
        ('{"players": [1, NaN]}', "none of them negative"),
        ('{"players": [0, 0]}', "nothing could be saved"),
        ("{", "is not JSON"),
    ],
)
def test_a_table_of_ones_own(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"players": [1, 2.5], "rest": 0.5}))
    assert read_seconds(str(path), 2).total == 4.0
    path.write_text(content)
    with pytest.raises(RequestError, match=message):
        read_seconds(str(path), 2)
    with pytest.raises(RequestError, match="cannot be read"):
        read_seconds(str(tmp_path / "none.json"), 2)
