"""Layers, halves of layers and groups as players, from the game to the exported checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.players import ExportablePlayers, zeroed_halves
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.players import make_players
from layercoop_fast.pruning.checkpoint_costs import Cost
from layercoop_fast.pruning.prune import prune
from layercoop_fast.texts.calibration import Calibration

L = 4


def game_of(players, family: str = "llama") -> ModelGame:
    ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    model = FAMILIES[family](n_layers=L)
    return ModelGame(Checkpoint(model, tiny_tokenizer(), family), Calibration(ids, "test"), players=players)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_both_halves_together_are_the_layer(family: str) -> None:
    layers, halves = game_of("layers", family), game_of("sublayers", family)
    assert halves.n_players == 2 * L
    masks = np.random.default_rng(0).random((8, L)) < 0.6
    assert np.array_equal(halves(np.repeat(masks, 2, axis=1)), layers(masks))
    lone = np.ones((1, 2 * L), bool)
    lone[0, 3] = False
    assert halves(lone)[0] != 1.0


def test_groups_are_masks_over_their_units() -> None:
    layers, grouped = game_of("layers"), game_of([[0, 2], [3]])
    assert grouped.n_players == 2
    masks = np.array([[True, False], [False, True], [False, False]])
    expected = np.array([[1, 1, 1, 0], [0, 1, 0, 1], [0, 1, 0, 0]], bool)
    assert np.array_equal(grouped(masks), layers(expected))
    halves, mixed = game_of("sublayers"), game_of([["1.attn", 2], ["3.mlp"]])
    units = np.ones((1, 2 * L), bool)
    units[0, [2, 4, 5]] = False
    assert np.array_equal(mixed(np.array([[False, True]])), halves(units))


def test_fingerprints_tell_players_apart() -> None:
    kinds = [game_of(players).fingerprints["players"] for players in ("layers", "sublayers", [[0], [1]], [[0, 1]])]
    assert len(set(kinds)) == 4


def test_block_influence_has_one_score_a_player() -> None:
    layers, grouped, halves = game_of("layers"), game_of([[0, 2], [3]]), game_of("sublayers")
    scores = layers.block_influence()
    assert grouped.block_influence() == pytest.approx([scores[0] + scores[2], scores[3]])
    assert halves.block_influence().shape == (2 * L,)


def test_groups_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text("[[0, 1], [2]]")
    skeleton = Skeleton(FAMILIES["llama"](n_layers=L))
    assert make_players(str(path), skeleton).groups == ((0, 1), (2,))
    for content, message in [
        ("[[0], [0]]", "is in two groups"),
        ("[[4]]", r"4 is neither a layer \(0 to 3\)"),
        ('[["1.head"]]', "'1.head' is neither a layer"),
        ("[[]]", "list of non-empty lists"),
        ("{}", "is not a list of groups"),
        ("[[0]", "is not JSON"),
    ]:
        path.write_text(content)
        with pytest.raises(RequestError, match=message):
            make_players(str(path), skeleton)
    with pytest.raises(RequestError, match="cannot be read"):
        make_players(str(tmp_path / "none.json"), skeleton)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_sublayer_mask_is_exported_exactly(family: str, tmp_path: Path) -> None:
    """Layer 1 loses its attention, layer 2 its MLP, layer 3 both (and so is left out)."""
    game = game_of("sublayers", family)
    mask = np.ones(2 * L, bool)
    mask[[2, 5, 6, 7]] = False
    kept = [int(layer) for layer in np.flatnonzero(game.masked.players.layer_mask(mask))]
    assert kept == [0, 1, 2]
    zeroed = zeroed_halves(game.masked.players, mask)
    assert sorted(zeroed) == [1, 2]
    path = game.masked.skeleton.blocks_path
    export_checkpoint(game.checkpoint.model, kept, tmp_path / "out", blocks_path=path, zeroed=zeroed)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == 3
    with torch.inference_mode():
        context = game.masked.skeleton.context(game.calibration.ids)
        hidden = context.embedding
        for unit in np.flatnonzero(mask):
            hidden = game.masked.players.run(context, int(unit), hidden)
        logits = loaded(input_ids=game.calibration.ids, use_cache=False).logits
        assert torch.equal(logits, context.logits(hidden))


def test_prune_by_sublayers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = Cost(1, 1, 1, 1, 1.0, 1.0)
    monkeypatch.setattr("layercoop_fast.pruning.writing.measure_costs", lambda paths, **_: [cost] * len(paths))
    save_tiny(tmp_path / "model", n_layers=L)
    options = {"players": "sublayers", "windows": 2, "tokens": 24, "heldout": "builtin-heldout", "repair": False}
    done = prune(str(tmp_path / "model"), tmp_path / "out", remove=3, **options)
    record = json.loads((tmp_path / "out" / "layercoop.json").read_text())
    assert record["n_players"] == 2 * L
    assert len(record["removed"]) == 3
    assert all(label.split(".")[1] in ("attn", "mlp") for label in record["removed"] + record["kept"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == done.choice.mask.reshape(-1, 2).any(axis=1).sum()


def test_searches_stay_within_what_a_config_can_say() -> None:
    game = game_of("layers", "jamba")
    allowed = ExportablePlayers(game.checkpoint.model.config, game.masked.players)
    masks = [np.array([bool(bits >> i & 1) for i in range(L)]) for bits in range(1, 2**L)]
    refused = [mask for mask in masks if allowed.check(mask) is not None]
    assert refused
    for mask in refused:
        best = allowed.best(mask.astype(float), int(mask.sum()))  # cheapest to remove is what the mask removes
        assert best is None or allowed.check(best) is None
    finer = ExportablePlayers(FAMILIES["llama"](n_layers=L).config, game_of("sublayers").masked.players)
    assert finer.check(np.arange(2 * L) != 3) is None
    assert finer.check(np.zeros(2 * L, bool)) == "at least one layer must be kept"
