"""int8 and int4 weights of the executor for GPUs: the native executor's numbers, by oracles and in the interpreter."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_oracle import OracleExecutor
from tiny_models import save_tiny, tiny_model
from torch import nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.frame import interpreted
from layercoop_fast.kernels.memory import through_interpreter
from layercoop_fast.llama.block import UnfitError
from layercoop_fast.llama.gpu_quantised import QuantisedMap
from layercoop_fast.llama.model import find_model
from layercoop_fast.llama.native_packing import pack_rows
from layercoop_fast.runtime import opening
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.gpu import GpuExecutor
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.native import NativeExecutor

BUDGET = 2**21
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
CPU = torch.device("cpu")


def model_of(family: str, n_layers: int = 3, **sizes: Any) -> Any:
    return tiny_model(family, n_layers, **(SIZES | sizes))


def unpacked(weight: torch.Tensor, format: str) -> torch.Tensor:
    """A matrix as the native executor keeps it."""
    out = np.empty(tuple(weight.shape), dtype=np.float32)
    pack_rows(format, [weight.detach()]).unpack(0, out)
    return torch.from_numpy(out)


def texts(executor: Executor, masks: list[list[int]], longest: int) -> list[torch.Tensor]:
    """Logits of prompts, one of them long, and of single tokens of all sequences."""
    sequences = [executor.sequence(np.array(mask, dtype=bool)) for mask in masks]
    prompts = [[(3 * at + 7 * number) % 250 + 3 for at in range(longest - number)] for number in range(len(masks))]
    found = [executor.run([Chunk(s, prompt) for s, prompt in zip(sequences, prompts, strict=True)]).clone()]
    for number in range(2):
        found.append(executor.run([Chunk(s, [5 + 9 * number + at]) for at, s in enumerate(sequences)]).clone())
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_logits_are_those_of_the_native_executors_weights(family: str, dtype: str) -> None:
    model = model_of(family, tie_word_embeddings=family == "qwen3")
    masks = [[1, 1, 1], [1, 0, 1]]
    weights = find_model(Skeleton(model))[0]
    head = weights.head.projection
    ends = "int8"  # with int4 too
    matrices = {id(head): unpacked(head.weight, ends)}
    for block in weights.blocks:
        assert block is not None
        for linear in (block.query, block.key, block.value, block.output, block.gate, block.up, block.down):
            matrices[id(linear)] = unpacked(linear.weight, dtype)
    embedding = unpacked(model.get_input_embeddings().weight, ends)
    oracle = OracleExecutor(replace(weights, embedding=embedding), BUDGET, matrix=lambda linear: matrices[id(linear)])
    expected = texts(oracle, masks, 40)
    executor = GpuExecutor(Skeleton(copy.deepcopy(model)), BUDGET, dtype=dtype, device=CPU)
    for found, exact in zip(texts(executor, masks, 40), expected, strict=True):
        assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5
    assert executor.name == f"gpu {dtype}"
    left = [each.numel() for name, each in executor.skeleton.model.named_parameters() if name.endswith("proj.weight")]
    assert left
    assert not any(left)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_kernels_in_the_interpreter(dtype: str) -> None:
    if not interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: its kernels run on the GPU here")
    model = model_of("qwen3", 1, vocab_size=40)
    found = []
    for _ in range(2):
        executor = GpuExecutor(Skeleton(copy.deepcopy(model)), BUDGET, dtype=dtype, device=CPU)
        sequence = executor.sequence(np.array([True]))
        with nullcontext() if found else through_interpreter(), np.errstate(all="ignore"):
            prompt = executor.run([Chunk(sequence, [5, 9])]).clone()
            found.append(torch.cat([prompt, executor.run([Chunk(sequence, [7])])]))
    assert float((found[0] - found[1]).abs().max() / found[1].abs().max()) < 1e-5


@pytest.mark.parametrize("rows", [0, 1, 17, 65])
def test_a_map_of_several(rows: int) -> None:
    """Few rows go by sixteens and many by a widened piece; one map without a bias beside one that has one."""
    torch.manual_seed(0)
    maps = [nn.Linear(64, 5000), nn.Linear(64, 3, bias=False)]
    x = torch.randn(rows, 64)
    packed = QuantisedMap(maps, 8, CPU)
    weight = torch.cat([unpacked(each.weight, "int8") for each in maps])
    bias = torch.cat([maps[0].bias.detach(), torch.zeros(3)])
    torch.testing.assert_close(packed(x), x @ weight.T + bias, rtol=1e-5, atol=1e-5)
    assert packed.nbytes == 5003 * (64 + 2 * 2)


def test_what_does_not_fit_says_why() -> None:
    with pytest.raises(UnfitError, match="a product of 48 columns does not fall into groups of 32"):
        GpuExecutor(Skeleton(tiny_model("llama", 2)), BUDGET, dtype="int8", device=CPU)


def test_models_opened_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    save_tiny(path, "llama")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="device 'cuda' does not exist: torch finds 0 CUDA devices"):
            LayerSkipModel.from_pretrained(path, "int4", device="cuda")
    with pytest.raises(RequestError, match="int4 weights lie on one device: name cuda or cuda:N instead of auto"):
        LayerSkipModel.from_pretrained(path, "int4", device="auto")
    # From here on the CPU stands for a GPU: what opens and packs is the same.
    monkeypatch.setattr(opening, "check_device", lambda device: CPU)
    monkeypatch.setattr(opening, "gpu_named", lambda device, what: CPU)
    with pytest.raises(RequestError, match="cannot run in int4 on cuda: a product of 48 columns"):
        LayerSkipModel.from_pretrained(path, "int4", device="cuda", kv_memory=BUDGET)
    with pytest.raises(RequestError, match="the native executor is for the CPU, not for cuda"):
        LayerSkipModel.from_pretrained(path, "int4", executor="native", device="cuda")
    wide = model_of("llama")
    wide.save_pretrained(path)
    mask = [True, False, True]
    opened, native = (
        LayerSkipModel.from_pretrained(path, "int8", mask, device=device, kv_memory=BUDGET)
        for device in ("cuda", "cpu")
    )
    assert (opened.executor.name, native.executor.name) == ("gpu int8", "native int8")
    assert isinstance(native.executor, NativeExecutor)
    assert 0.9 < opened.memory()["weights"] / native.memory()["weights"] < 1.1
    prompt = [5, 9, 200, 31, 7]
    found, expected = (each.generate(prompt, mask, max_new_tokens=4, ignore_eos=True) for each in (opened, native))
    assert found.tokens == expected.tokens  # type: ignore[union-attr]
