"""A model whose blocks are read from files plays as the one in memory, bit for bit, and takes no more than it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.cost_forecast import forecast_cost
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.model import SHORT_CHUNK
from layercoop_fast.texts.calibration import Calibration

L, W, T = 5, 2, 21
MASKS = np.random.default_rng(0).random((14, L)) < 0.6
IDS = torch.randint(3, 256, (W, T), generator=torch.Generator().manual_seed(0))


def game_of(folder: Path, *, offload: bool, dtype: str = "auto", **options: Any) -> ModelGame:
    checkpoint = open_checkpoint(str(folder), offload=offload, dtype=dtype)
    return ModelGame(checkpoint, Calibration(IDS, "test"), **options)


def assert_same(folder: Path, masks: np.ndarray, **options: Any) -> tuple[ModelGame, ModelGame]:
    resident, streamed = (game_of(folder, offload=offload, **options) for offload in (False, True))
    expected, got = resident.evaluate(masks), streamed.evaluate(masks)
    assert np.array_equal(expected.window_nll, got.window_nll)
    assert np.array_equal(expected.worths, got.worths)
    assert resident.fingerprints == streamed.fingerprints
    return resident, streamed


@pytest.mark.parametrize(
    ("family", "arguments", "dtype"),
    [
        ("llama", {}, "auto"),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}, "bfloat16"),
        ("qwen3", {}, "auto"),
        ("gpt2", {}, "bfloat16"),
        ("opt", {}, "auto"),
        ("mamba", {}, "auto"),
    ],
)
def test_worths_and_fingerprints_are_those_of_the_model_in_memory(
    tmp_path: Path, family: str, arguments: dict[str, Any], dtype: str
) -> None:
    """In the file's own dtype and in another, on fast blocks (llama, qwen3) and on the model's own."""
    folder = save_tiny(tmp_path / "model", family, L, **arguments)
    resident, streamed = assert_same(folder, MASKS, dtype=dtype)
    fast = family in ("llama", "qwen3")
    assert resident.masked.units.path == streamed.masked.units.path == ("fast" if fast else "hf")
    assert resident.masked.weights_read == 0
    assert streamed.masked.weights_read > 0


def test_shards_sublayers_and_scored_positions(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", L)
    model = open_checkpoint(str(folder)).model
    model.save_pretrained(folder, max_shard_size=100_000)
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 3
    halves = np.random.default_rng(1).random((9, 2 * L)) < 0.7
    assert_same(folder, halves, players="sublayers")
    assert_same(folder, MASKS, score_every=4, utility="kl", block_path="hf")


def test_blocks_of_two_kinds(tmp_path: Path) -> None:
    """Some with rotary positions, which have a fast form, and some without."""
    assert_same(save_tiny(tmp_path / "model", "smollm3", L), MASKS)


def test_weights_saved_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2", L)
    stored = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor.clone() for name, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(folder, MASKS)


def test_only_blocks_that_a_mask_needs_are_read_once_for_all_masks(tmp_path: Path) -> None:
    game = game_of(save_tiny(tmp_path / "model", "llama", L), offload=True)
    game.evaluate(np.ones((1, L), dtype=np.bool_))
    block = game.masked.skeleton.streamed.bytes_of(0)  # type: ignore[union-attr]
    masks = MASKS.copy()
    masks[:, [0, 3]] = False
    ahead = forecast_cost(game, masks)
    # Both pieces of memory hold what no mask needs, and what a plan's batch width is found on (block 0) is one of them.
    game.masked.skeleton.expect([0, 3])
    for unneeded in (0, 3, 0):
        game.masked.skeleton.block(unneeded)
    before = game.masked.weights_read
    game.evaluate(masks)
    assert game.masked.weights_read - before == ahead.read_bytes == 3 * block
    assert ahead.read_seconds > 0
    assert ahead.seconds >= ahead.read_seconds


def test_a_store_serves_both_and_does_not_narrow_chunks(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", L)
    first = game_of(folder, offload=True, store=tmp_path / "store")
    assert first.masked.limits(short=True)[0] > SHORT_CHUNK
    measured = first.evaluate(MASKS)
    first.close()
    second = game_of(folder, offload=False, store=tmp_path / "store")
    assert second.masked.limits(short=True)[0] == SHORT_CHUNK
    assert np.array_equal(second.evaluate(MASKS).worths, measured.worths)
    assert second.evaluations.unique == 0
    second.close()


def test_block_influence_is_that_of_the_model_in_memory(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "opt", L)
    resident, streamed = (game_of(folder, offload=offload).block_influence() for offload in (False, True))
    assert np.array_equal(resident, streamed)


def test_flops_are_counted_on_one_block_of_a_kind(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "smollm3", L)
    resident, streamed = (game_of(folder, offload=offload) for offload in (False, True))
    before = streamed.masked.weights_read
    assert resident.masked.flops[0].tolist() == streamed.masked.flops[0].tolist()
    assert streamed.masked.weights_read - before <= 2 * streamed.masked.skeleton.streamed.bytes_of(0)  # type: ignore[union-attr]


def test_a_file_cut_short_during_the_run_loses_nothing(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", L)
    game = game_of(folder, offload=True, store=tmp_path / "store")
    first = game.evaluate(MASKS[:4])
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(len(whole) // 2)
    with pytest.raises(RunError, match="cut short after it was opened"):
        game.evaluate(MASKS)
    game.close()
    file.write_bytes(whole)
    again = game_of(folder, offload=True, store=tmp_path / "store")
    assert np.array_equal(again.evaluate(MASKS[:4]).worths, first.worths)
    assert again.evaluations.unique == 0, "what was measured before is in the store"
    again.close()


def test_a_weight_shared_by_two_blocks_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that shares a projection between blocks: one copy, not streamed, and the block is not a fast one."""
    from transformers import LlamaModel

    made = LlamaModel.__init__

    def sharing(self: Any, config: Any) -> None:
        made(self, config)
        self.layers[3].mlp.up_proj.weight = self.layers[1].mlp.up_proj.weight

    folder = save_tiny(tmp_path / "model", "llama", L)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(LlamaModel, "__init__", sharing)
    game = game_of(folder, offload=True)
    shared = game.masked.skeleton.blocks[3].get_parameter("mlp.up_proj.weight")
    assert torch.equal(shared, tensors["model.layers.1.mlp.up_proj.weight"])
    assert shared is game.masked.skeleton.blocks[1].get_parameter("mlp.up_proj.weight")
    assert game.masked.units.path == "fast but for blocks 1,3"
    assert np.isfinite(game.evaluate(MASKS).worths).all()


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_neox"])
def test_weights_that_are_translated_when_loaded_are_refused(tmp_path: Path, family: str) -> None:
    folder = save_tiny(tmp_path / "model", family, L)
    with pytest.raises(RequestError, match=r"under other names than its modules .* offload= cannot read them"):
        open_checkpoint(str(folder), offload=True)


def test_checkpoints_that_are_not_whole(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", L)
    # Copies: what load_file returns lies in the file, which is written over below.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}

    def refusal(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RequestError) as caught:
            open_checkpoint(str(folder), offload=True)
        return str(caught.value)

    name = "model.layers.2.mlp.up_proj.weight"
    assert "lacks 1 weights" in refusal({key: tensor for key, tensor in tensors.items() if key != name})
    assert "do not have the shapes" in refusal(tensors | {name: tensors[name][:-1].clone()})
    assert "more layers than its config" in refusal(tensors | {name.replace("2", "9"): tensors[name].clone()})
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(RequestError, match="which differ although its config ties them"):
        open_checkpoint(str(folder), offload=True)


def test_requests_that_offload_cannot_serve(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", L)
    with pytest.raises(RequestError, match="is not a folder: with offload="):
        open_checkpoint("nobody/nothing", offload=True)
    with pytest.raises(RequestError, match="would read all weights once a token"):
        ModelGame.from_pretrained(str(folder), "self", offload=True)


def test_a_block_that_is_not_in_use_cannot_be_run_by_accident(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_tiny(tmp_path / "model", "llama", L)), offload=True)
    skeleton = Skeleton(checkpoint.model, streamed=checkpoint.streamed)
    context = skeleton.context(IDS)
    context.run(2, context.embedding)
    assert not skeleton.blocks[2].get_parameter("mlp.up_proj.weight").is_meta
    assert skeleton.blocks[1].get_parameter("mlp.up_proj.weight").is_meta
