"""`LayerSkipModel` as a user meets it, on tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny, tiny_model
from transformers import AutoModelForCausalLM

from layercoop_fast import LayerSkipModel, RequestError, Sampling
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.export.checkpoint import export_checkpoint

N_LAYERS = 4
PROMPT = "It was the best of times, it was"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("runtime") / "llama", "llama", N_LAYERS)


@pytest.fixture(scope="module", params=["transformers", "native"])
def model(folder: Path, request: pytest.FixtureRequest) -> LayerSkipModel:
    return LayerSkipModel.from_pretrained(folder, dtype="fp32", executor=request.param)


def way(model: LayerSkipModel) -> str:
    return "transformers" if model.executor.name == "transformers" else "native"


def bits(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


MASKS = [bits(text) for text in ("1111", "1101", "1011", "0110")]


def test_a_batch_of_masks_says_what_each_says_alone(model: LayerSkipModel) -> None:
    together = model.generate(PROMPT, MASKS, max_new_tokens=20, ignore_eos=True)
    model.forget()
    for mask, answer in zip(MASKS, together, strict=True):
        alone = model.generate(PROMPT, mask, max_new_tokens=20, ignore_eos=True)
        assert alone.tokens == answer.tokens
        assert alone.text == answer.text == model.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        assert len(answer.tokens) == 20
        model.forget()
    assert len({tuple(answer.tokens) for answer in together}) > 1
    assert model.memory()["kv"] == 0


def test_prompts_of_different_lengths_stand_beside_each_other(model: LayerSkipModel) -> None:
    prompts = [PROMPT, "No", torch.tensor([[70, 71, 72]]), [80] * 40]
    together = model.generate(prompts, MASKS, max_new_tokens=6)
    for prompt, mask, answer in zip(prompts, MASKS, together, strict=True):
        assert model.generate(prompt, mask, max_new_tokens=6).tokens == answer.tokens


def test_the_stream_is_the_answer(model: LayerSkipModel) -> None:
    answer = model.generate(PROMPT, MASKS[1], max_new_tokens=12)
    steps = list(model.stream(PROMPT, MASKS[1], max_new_tokens=12))
    assert [step.token for step in steps] == answer.tokens
    assert "".join(step.text for step in steps) == answer.text
    assert [step.finish for step in steps] == [None] * (len(steps) - 1) + [answer.finish]
    broken_off = model.stream(PROMPT, max_new_tokens=12)
    next(broken_off)
    broken_off.close()
    assert not model.batcher.running


def test_a_stop_string_ends_the_answer_before_it(model: LayerSkipModel) -> None:
    whole = model.generate(PROMPT, max_new_tokens=30, ignore_eos=True)
    stop = whole.text[5:8]
    stopped = model.generate(PROMPT, max_new_tokens=30, stop=stop, ignore_eos=True)
    assert stopped.finish == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]


def test_one_seed_draws_the_same_again_and_masks_draw_apart(model: LayerSkipModel) -> None:
    how = Sampling(temperature=1.5, top_p=0.9, seed=4)
    first, second = (model.generate([PROMPT, PROMPT], sampling=how, max_new_tokens=10) for _ in range(2))
    assert [answer.tokens for answer in first] == [answer.tokens for answer in second]
    assert first[0].tokens != first[1].tokens


def test_weights_that_a_mask_removes_are_not_held(folder: Path, model: LayerSkipModel) -> None:
    mask = bits("1011")
    smaller = LayerSkipModel.from_pretrained(folder, "fp32", mask, executor=way(model))
    block = sum(p.numel() for p in tiny_model("llama", 1).model.layers.parameters())
    less = model.memory()["weights"] - smaller.memory()["weights"]
    assert less == 4 * block if way(model) == "transformers" else 0.9 < less / (4 * block) < 1.5  # padded tiles
    assert smaller.generate(PROMPT, max_new_tokens=9).tokens == model.generate(PROMPT, mask, max_new_tokens=9).tokens
    assert smaller.generate(PROMPT, bits("1001"), max_new_tokens=1).tokens
    with pytest.raises(RequestError, match="keeps block 1, whose weights were left out"):
        smaller.generate(PROMPT, bits("1100"))


@pytest.mark.parametrize("family", ["gpt_neox", "mamba", "qwen2_moe"])
def test_any_family_leaves_weights_out(family: str, tmp_path: Path) -> None:
    """Those whose files need translating are loaded whole and let go of."""
    path = save_tiny(tmp_path / family, family, N_LAYERS)
    mask = bits("0110")
    whole = LayerSkipModel.from_pretrained(path, executor="transformers")
    smaller = LayerSkipModel.from_pretrained(path, mask=mask, executor="transformers")
    assert smaller.memory()["weights"] < whole.memory()["weights"]
    assert (
        smaller.generate([5, 6, 7], max_new_tokens=5).tokens == whole.generate([5, 6, 7], mask, max_new_tokens=5).tokens
    )


def test_a_folder_that_prune_wrote_says_what_to_leave_out(folder: Path, model: LayerSkipModel, tmp_path: Path) -> None:
    """The original with the record's halves left out is the checkpoint in which they are zeros, and smaller."""
    skeleton = Skeleton(tiny_model("llama", N_LAYERS))
    zeroed = {0: ["mlp.down_proj.weight"], 3: ["self_attn.o_proj.weight"]}
    record = {"removed": ["0.mlp", "1.attn", "1.mlp", "3.attn"], "kept": ["0.attn", "2.attn", "2.mlp", "3.mlp"]}
    pruned = tmp_path / "pruned"
    export_checkpoint(
        skeleton.model, [0, 2, 3], pruned, blocks_path=skeleton.blocks_path, zeroed=zeroed,
        finish=lambda _: {"layercoop.json": json.dumps(record)},
    )  # fmt: skip
    ids = model.tokens(PROMPT)
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(pruned).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=8, do_sample=False
        )
    expected = plain[0, len(ids) :].tolist()
    from_original = LayerSkipModel.from_pretrained(folder, mask=pruned, executor=way(model))
    from_pruned = LayerSkipModel.from_pretrained(pruned, executor=way(model))
    assert from_original.held.tolist() == [1, 0, 3, 2]
    for opened in (from_original, from_pruned):
        assert opened.generate(list(ids), max_new_tokens=8).tokens[: len(expected)] == expected
    assert from_original.memory()["weights"] < from_pruned.memory()["weights"]
    assert from_original.generate(list(ids), max_new_tokens=1).tokens
    with pytest.raises(RequestError, match="model of 4 layers, and this one has 3"):
        LayerSkipModel.from_pretrained(pruned, mask=pruned)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": []}, "the prompt is empty"),
        ({"ids": ""}, "the prompt is empty"),
        ({"ids": [1] * 250}, "250 tokens and 128 new ones are 378, and the model has positions for 256"),
        ({"ids": [1], "mask": np.ones(5, bool)}, r"bool\[4\].*got bool\[5\]"),
        ({"ids": [1], "mask": np.zeros(4, bool)}, "removes every block"),
        ({"ids": [1.5]}, "row of integers"),
        ({"ids": torch.ones(2, 3, dtype=torch.int64)}, r"not \[2, 3\]"),
        ({"ids": [[1], [2]], "mask": [MASKS[0]] * 3}, "3 masks for 2 prompts"),
        ({"ids": [[1], [2]], "sampling": [Sampling()]}, "1 samplings for 2 requests"),
        ({"ids": [1], "stop": [""]}, "at least one character"),
    ],
)
def test_what_cannot_be_asked(model: LayerSkipModel, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate(**arguments)
    assert not model.batcher.waiting


def test_numbers_that_are_no_sampling() -> None:
    with pytest.raises(RequestError, match="temperature"):
        Sampling(temperature=float("nan"))


def test_a_model_that_is_not_llama_shaped_is_said_once(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "opt", "opt", 2)
    with pytest.warns(UserWarning, match="runs on the blocks of transformers, since the native executor cannot run it"):
        opened = LayerSkipModel.from_pretrained(path)
    assert opened.executor.name == "transformers"
    assert LayerSkipModel.from_pretrained(path).why_general  # a second time would be an error here
    with pytest.raises(RequestError, match="cannot run on the native executor"):
        LayerSkipModel.from_pretrained(path, executor="native")
    with pytest.raises(RequestError, match="cannot run on the native executor, which int8"):
        LayerSkipModel.from_pretrained(path, "int8")
    with pytest.raises(RequestError, match="which keys and values of fp16 need"):
        LayerSkipModel.from_pretrained(path, kv_dtype="float16")


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_both_executors_say_the_same(family: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / family, family, N_LAYERS)
    ours, theirs = (LayerSkipModel.from_pretrained(path, executor=name) for name in ("native", "transformers"))
    for mask in MASKS:
        answers = [model.generate(PROMPT, mask, max_new_tokens=20, ignore_eos=True) for model in (ours, theirs)]
        assert answers[0].tokens == answers[1].tokens


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_weights_take_less_and_share_as_well(folder: Path, model: LayerSkipModel, dtype: str) -> None:
    small = LayerSkipModel.from_pretrained(folder, dtype)
    assert small.memory()["weights"] < 0.5 * model.memory()["weights"]
    together = small.generate(PROMPT, MASKS, max_new_tokens=8)
    for mask, answer in zip(MASKS, together, strict=True):
        small.forget()
        assert small.generate(PROMPT, mask, max_new_tokens=8).tokens == answer.tokens


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8"])
def test_smaller_keys_and_values_take_less(folder: Path, model: LayerSkipModel, kv_dtype: str) -> None:
    small = LayerSkipModel.from_pretrained(folder, kv_dtype=kv_dtype)
    for opened in (small, model):
        opened.forget()
        opened.generate(PROMPT, max_new_tokens=8)
    assert small.memory()["kv"] < 0.6 * model.memory()["kv"]


def test_a_wrong_executor_or_dtype_is_said(folder: Path) -> None:
    with pytest.raises(RequestError, match="unknown dtype of keys and values 'int2': choose from auto, fp32"):
        LayerSkipModel.from_pretrained(folder, kv_dtype="int2")
    with pytest.raises(RequestError, match="keys and values of int8 are for the native executor on the CPU"):
        LayerSkipModel.from_pretrained(folder, kv_dtype="int8", executor="transformers")
    with pytest.raises(RequestError, match="unknown executor 'fast'"):
        LayerSkipModel.from_pretrained(folder, executor="fast")
    with pytest.raises(RequestError, match="unknown dtype 'fp3'"):
        LayerSkipModel.from_pretrained(folder, dtype="fp3")
    with pytest.raises(RequestError, match="int8 weights are not for transformers' blocks"):
        LayerSkipModel.from_pretrained(folder, dtype="int8", executor="transformers")
