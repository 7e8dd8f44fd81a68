"""Exported folders loaded by plain transformers in a fresh process, and what happens when one cannot be written."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.modeling_utils
from safetensors.torch import save_file
from tiny_models import EOS, FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.checkpoint import export_checkpoint, pruned_model
from layercoop_fast.export.config import nearest_exportable

N_LAYERS = 6
N_NEW = 6  # tokens generated, as in load_exported.py
BLOCKS = {
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "mamba": "backbone.layers",
}


def blocks_path(family: str) -> str:
    return BLOCKS.get(family, "model.layers")


@contextmanager
def skipped(model: PreTrainedModel, path: str, kept: list[int]) -> Iterator[None]:
    """While open, the blocks not in `kept` hand on the hidden state they receive, in the form they return it in."""
    blocks = [block for i, block in enumerate(model.get_submodule(path)) if i not in kept]
    returned: list[Any] = []
    hooks = [block.register_forward_hook(lambda *call: returned.append(call[2])) for block in blocks]
    with torch.inference_mode():
        model(torch.ones(1, 2, dtype=torch.int64), use_cache=False)
    for hook in hooks:
        hook.remove()
    bare = all(isinstance(each, Tensor) for each in returned)
    for block in blocks:
        block.forward = (lambda hidden, *_, **__: hidden) if bare else (lambda hidden, *_, **__: (hidden, None))
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _cases() -> list[tuple[str, list[int]]]:
    """Each family with two random masks; of Jamba's, the nearest that can be exported."""
    rng = np.random.default_rng(0)
    cases = []
    for family in FAMILIES:
        for n_kept in (2, 4):
            mask = np.isin(np.arange(N_LAYERS), rng.permutation(N_LAYERS)[:n_kept])
            if family == "jamba":
                mask = nearest_exportable(tiny_model("jamba").config, mask, n_kept)
            cases.append((family, np.flatnonzero(mask).tolist()))
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Per case of `CASES`, what load_exported.py found and the tokens that the masked original generates."""
    folder = tmp_path_factory.mktemp("exported")
    ids = torch.randint(3, 259, (3, 20), generator=torch.Generator().manual_seed(0))
    outs, greedy = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the fresh process does: the number of threads is part of the arithmetic
    for family, kept in CASES:
        model = FAMILIES[family](n_layers=N_LAYERS)
        path = blocks_path(family)
        out = folder / f"{family}-{len(kept)}"
        export_checkpoint(model, kept, out, blocks_path=path)
        with skipped(model, path, kept), torch.inference_mode():
            logits = model(ids, use_cache=False).logits
            tokens = ids[:1]
            while tokens.shape[1] < ids.shape[1] + N_NEW and tokens[0, -1] != EOS:
                following = model(tokens, use_cache=False).logits[:, -1:].argmax(-1)
                tokens = torch.cat([tokens, following], dim=1)
        assert not torch.equal(logits, model(ids, use_cache=False).logits), "the mask changes nothing"
        save_file({"ids": ids, "logits": logits.contiguous()}, f"{out}.safetensors")
        outs.append(str(out))
        greedy.append(tokens[0].tolist())
    torch.set_num_threads(threads)
    script = Path(__file__).with_name("load_exported.py")
    command = [sys.executable, "-W", "error", str(script), *outs]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    return [found[out] | {"greedy": tokens} for out, tokens in zip(outs, greedy, strict=True)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{family}-{kept}" for family, kept in CASES])
def test_a_fresh_process_loads_the_same_computation(reports: list[dict[str, Any]], case: int) -> None:
    report, family = reports[case], CASES[case][0]
    assert report["same_logits"]
    assert report["cached"] == report["greedy"]
    assert report["uncached"] == report["greedy"]
    assert report["tied"] == tiny_model(family, n_layers=2).config.tie_word_embeddings


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weights_are_shared_and_the_original_is_unchanged(family: str) -> None:
    model = FAMILIES[family](n_layers=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_json_string()
    path = blocks_path(family)
    kept = [0, 1] if family == "jamba" else [1, 3]
    pruned = pruned_model(model, kept, path)
    for new, old in enumerate(kept):
        ours = pruned.get_submodule(f"{path}.{new}").state_dict()
        theirs = model.get_submodule(f"{path}.{old}").state_dict()
        assert {n: t.data_ptr() for n, t in ours.items()} == {n: t.data_ptr() for n, t in theirs.items()}
    assert model.config.to_json_string() == config
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gpt2_inverse_layer_scale_is_folded_into_the_queries(tmp_path: Path) -> None:
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    ids = torch.arange(3, 23)[None]
    export_checkpoint(model, [1, 2, 5], tmp_path / "out", blocks_path="transformer.h")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with skipped(model, "transformer.h", [1, 2, 5]), torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.config.scale_attn_by_inverse_layer_idx is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_dtype_and_sampling_settings_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    # Settings that today's transformers calls inconsistent, as some published models have them.
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = False
    export_checkpoint(model, [0, 4], tmp_path / "out", blocks_path="model.layers", max_shard_size="50KB")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == dtype
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    expected = pruned_model(model, [0, 4], "model.layers").state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.state_dict().items())
    saved = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"]) == (0.7, False)


def test_tokenizer_and_finishing_touches_are_there(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    seen: list[list[str]] = []

    def finish(folder: Path) -> dict[str, str | bytes]:
        AutoModelForCausalLM.from_pretrained(folder)
        seen.append(sorted(path.name for path in folder.iterdir()))
        return {"layercoop.json": '{"é": 1}', "raw": b"\xff"}

    out = tmp_path / "deep" / "out"
    export_checkpoint(tiny_model("llama"), [0], out, blocks_path="model.layers", tokenizer=tokenizer, finish=finish)
    assert sorted(path.name for path in out.iterdir()) == sorted([*seen[0], "layercoop.json", "raw"])
    assert json.loads((out / "layercoop.json").read_text(encoding="utf-8")) == {"é": 1}
    reread = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "Où?"}]
    assert reread("Ça va, naïve ☃?").input_ids == tokenizer("Ça va, naïve ☃?").input_ids
    assert reread.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert reread.special_tokens_map == tokenizer.special_tokens_map
    texts = [path.read_text(encoding="utf-8") for path in out.glob("*.json")]
    assert not any(str(tmp_path) in text for text in texts), "a path of this machine was written"


def _export(out: Path, **arguments: Any) -> None:
    export_checkpoint(tiny_model("llama", n_layers=3), [0, 2], out, blocks_path="model.layers", **arguments)


def _old_folder(out: Path) -> None:
    out.mkdir()
    (out / "old").write_text("here")


def _is_the_old_folder(out: Path) -> bool:
    return [path.name for path in out.parent.iterdir()] == [out.name] and (out / "old").read_text() == "here"


def test_an_existing_folder_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _old_folder(out)
    with pytest.raises(RequestError, match="exists already"):
        _export(out)
    assert _is_the_old_folder(out)
    _export(out, force=True)
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_write_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", fail)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=os.strerror(number)) as failure:
        _export(out)
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []
    _old_folder(out)
    with pytest.raises(RunError, match=os.strerror(number)):
        _export(out, force=True)
    assert _is_the_old_folder(out)


def test_a_real_limit_on_file_size_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # the configs fit, the weights do not
    try:
        with pytest.raises(RunError, match="was not written") as failure:
            _export(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    _old_folder(out)
    rename = os.rename

    def fail_to_place(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(errno.EACCES, "no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_to_place)
    with pytest.raises(RunError):
        _export(out, force=True)
    assert _is_the_old_folder(out)


def test_what_finish_raises_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def finish(folder: Path) -> dict[str, str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _export(tmp_path / "out", finish=finish)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file, not a folder"):
        _export(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda block: setattr(block.self_attn, "scaling", 0.5), "self_attn.scaling is 0.5, and would be 0.25"),
        (lambda block: setattr(block, "mlp", torch.nn.Identity()), "only one of the two has the module 'mlp.act_fn'"),
        (
            lambda block: setattr(block.mlp, "up_proj", torch.nn.Linear(48, 79, bias=False)),
            "mlp.up_proj.weight is [79, 48], and would be [80, 48]",
        ),
        (
            lambda block: setattr(block, "input_layernorm", torch.nn.RMSNorm(48)),
            "input_layernorm is a RMSNorm, and would be a LlamaRMSNorm",
        ),
    ],
)
def test_a_block_that_the_config_cannot_describe_is_named(tmp_path: Path, change: Any, complaint: str) -> None:
    model = tiny_model("llama", n_layers=4)
    change(model.model.layers[2])
    with pytest.raises(RunError, match=f"block 2 cannot become block 1 .*{re.escape(complaint)}"):
        export_checkpoint(model, [0, 2], tmp_path / "out", blocks_path="model.layers")
    assert list(tmp_path.iterdir()) == []


def test_weights_outside_the_blocks_must_be_claimed() -> None:
    model = tiny_model("llama", n_layers=3)
    model.model.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(RunError, match=r"do not fit the pruned config: .*model\.extra") as failure:
        pruned_model(model, [0], "model.layers")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [("model.blocks", "no module 'model.blocks'"), ("model", "not a list of blocks but a LlamaModel")],
)
def test_a_wrong_blocks_path_is_refused(path: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        pruned_model(tiny_model("llama", n_layers=3), [0], path)
