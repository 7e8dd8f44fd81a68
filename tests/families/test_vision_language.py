"""The language tower of vision-language models: its blocks are the players, a window's picture is shared context."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BOS, EOS, PAD, VOCAB_SIZE, _make_every_block_matter, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from layercoop_fast.engine.loading import Checkpoint, open_checkpoint, quiet_transformers
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.texts.calibration import Calibration, image_text

LAYERS, WINDOWS, TEXT = 3, 3, 12
IMAGE, START, END, VIDEO = 290, 291, 292, 293
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def llava() -> tuple[PreTrainedModel, Tensor, dict[str, Tensor], int]:
    """A model, ids [W, 4 + T] and what it sees; four tokens stand for a picture. Both towers have as many blocks."""
    config = AutoConfig.for_model(
        "llava",
        text_config={"model_type": "llama", **_TEXT},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    pixels = torch.randn(WINDOWS, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return _made(config), _windows([IMAGE] * 4), {"pixel_values": pixels}, 4


def qwen2_vl() -> tuple[PreTrainedModel, Tensor, dict[str, Tensor], int]:
    """The same of a model whose pictures are lists of patches, merged four to a token, with positions in the plane."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config={"model_type": "qwen2_vl_text", **_TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 48, "mlp_ratio": 2, "patch_size": 4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    patches = torch.randn(WINDOWS * 16, 3 * 2 * 16, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, 4, 4]] * WINDOWS)
    ids = _windows([START, *[IMAGE] * 4, END])
    kinds = (ids == IMAGE).int()
    return _made(config), ids, {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}, 6


def _made(config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _make_every_block_matter(model)
    return model.eval()


def _windows(prefix: list[int]) -> Tensor:
    text = torch.randint(3, 259, (WINDOWS, TEXT), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.tensor(prefix).expand(WINDOWS, -1), text], dim=1)


MODELS = [llava, qwen2_vl]


def game_on(model: PreTrainedModel, ids: Tensor, inputs: dict[str, Tensor], prefix: int, **options: Any) -> ModelGame:
    skeleton = Skeleton(model)
    checkpoint = Checkpoint(model, tiny_tokenizer(), "tiny")
    return ModelGame(checkpoint, image_text(ids, inputs, prefix, skeleton), skeleton=skeleton, **options)


def by_hand(game: ModelGame, ids: Tensor, inputs: dict[str, Tensor], prefix: int, kept: list[int]) -> np.ndarray:
    """Mean NLL of each window's text under the model with the other blocks taken out, pictures and all in one batch."""
    smaller = copy.deepcopy(game.checkpoint.model)
    parent = smaller.get_submodule(game.masked.skeleton.blocks_path.rpartition(".")[0])
    parent.layers = nn.ModuleList([parent.layers[layer] for layer in kept])
    parent.config.num_hidden_layers = len(kept)
    with torch.inference_mode():
        logits = smaller(input_ids=ids, use_cache=False, **inputs).logits[:, prefix - 1 : -1]
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, prefix:], reduction="none")
    return nll.double().mean(1).numpy()


@pytest.mark.parametrize("make", MODELS)
def test_worths_are_those_of_text_behind_pictures_with_blocks_removed(make: Any) -> None:
    model, ids, inputs, prefix = make()
    game = game_on(model, ids, inputs, prefix)
    assert game.masked.skeleton.blocks_path == "model.language_model.layers"
    masks = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 0]], dtype=bool)
    worths = game.evaluate(masks)
    for mask, nll in zip(masks, worths.window_nll, strict=True):
        kept = np.flatnonzero(mask).tolist()
        np.testing.assert_allclose(nll, by_hand(game, ids, inputs, prefix, kept), rtol=2e-5)
    # What is seen matters, and is in the fingerprint.
    other = game_on(model, ids, {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}, prefix)
    assert not np.allclose(other.evaluate(masks).window_nll, worths.window_nll, rtol=1e-3)
    assert other.fingerprints["calibration"] != game.fingerprints["calibration"]
    # A part of the windows sees its own pictures.
    np.testing.assert_allclose(game.part(1, 3).evaluate(masks).window_nll, worths.window_nll[:, 1:], rtol=2e-5)
    assert game.block_influence().shape == game.cka_distances().shape == (LAYERS,)


@pytest.mark.parametrize("make", MODELS)
def test_the_pruned_model_still_sees(make: Any, tmp_path: Path) -> None:
    model, ids, inputs, prefix = make()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    opened = open_checkpoint(str(tmp_path / "model")).model
    (tmp_path / "model" / "preprocessor_config.json").write_text("{}")
    game = game_on(opened, ids, inputs, prefix)
    export_checkpoint(opened, [0, 2], tmp_path / "pruned", blocks_path=game.masked.skeleton.blocks_path)
    assert (tmp_path / "pruned" / "preprocessor_config.json").exists()
    with quiet_transformers():
        pruned = AutoModelForImageTextToText.from_pretrained(tmp_path / "pruned").eval()
    context = game.masked.windows.context(1)
    with torch.inference_mode():
        wanted = context.logits(context.run(2, context.run(0, context.embedding)))
        assert torch.equal(pruned(input_ids=ids, use_cache=False, **inputs).logits, wanted[: len(ids)])
        tokens = [
            pruned.generate(
                input_ids=ids[:1],
                attention_mask=torch.ones_like(ids[:1]),
                max_new_tokens=4,
                do_sample=False,
                use_cache=use_cache,
                **{name: value[: len(value) // WINDOWS] for name, value in inputs.items()},
            ).tolist()
            for use_cache in (True, False)
        ]
    assert tokens[0] == tokens[1]


def test_windows_and_pictures_must_match() -> None:
    model, ids, inputs, _ = llava()
    skeleton = Skeleton(model)
    with pytest.raises(RequestError, match="2 rows for 3 windows"):
        image_text(ids, {"pixel_values": inputs["pixel_values"][:2]}, 4, skeleton)
    with pytest.raises(RequestError, match=r"take 16 of 16 tokens"):
        image_text(ids, inputs, 16, skeleton)


def test_text_alone_calibrates_the_language_tower_too() -> None:
    """Without pictures the same tower is a language model, on every position."""
    model, ids, _, prefix = llava()
    game = ModelGame(Checkpoint(model, tiny_tokenizer(), "tiny"), Calibration(ids[:, prefix:], "text"))
    assert game.evaluate(np.ones((1, LAYERS), bool)).window_nll.shape == (1, WINDOWS)
    assert len(game.masked.windows.scored) == TEXT - 1
