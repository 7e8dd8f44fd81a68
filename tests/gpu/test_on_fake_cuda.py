"""What the GPU's path would do on a device that is not there: fake tensors on "cuda", launches recorded.

Fake tensors have shapes, dtypes and devices and no numbers: operations on tensors of two devices fail, and so does
whatever makes the host wait for a number. The record says what each kernel would be compiled for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from indexing import ByOperations
from tiny_models import tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from layercoop_fast.kernels.gpu.frame import Launch, recorded
from layercoop_fast.llama.block import find_norm, find_parts
from layercoop_fast.llama.block_inputs import Rope
from layercoop_fast.llama.fused_head import FusedHead
from layercoop_fast.llama.gpu_block import PoolBlock
from layercoop_fast.llama.gpu_parts import PlainEnds
from layercoop_fast.masked.pool_units import PoolUnits
from layercoop_fast.runtime import gpu
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.gpu import GpuExecutor
from layercoop_fast.runtime.pages import PAGE, PagePool

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DEVICE = torch.device("cuda:0")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class _Joint:
    """A projection whose joint weight is a copy: fake tensors have no memory that weights could be views of."""

    holds = True

    def __init__(self, linears: list[nn.Linear]) -> None:
        self.weight = torch.cat([linear.weight.detach() for linear in linears])
        self.bias = None
        self.out_features = len(self.weight)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    monkeypatch.setattr("layercoop_fast.llama.gpu_block.Projection", _Joint)
    with FakeTensorMode(), recorded() as found, torch.no_grad(), ByOperations():
        yield found


def blocks_there(dtype: torch.dtype, tokens: int, count: int = 2) -> tuple[FusedHead, nn.Module, list[PoolBlock]]:
    """Head, embedding and blocks of a tiny llama on the device, for windows of some tokens."""
    with unset_fake_temporarily():  # what is a norm is found by its numbers
        model = tiny_model("llama", count, **SIZES)
        parts = [find_parts(block) for block in model.model.layers]
        norm = find_norm(model.model, "norm")
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(there(parameter, dtype), requires_grad=False))
    rope = Rope(*(torch.zeros(tokens, 16, dtype=dtype, device=DEVICE) for _ in range(2)), tokens)
    blocks = []
    for each in parts:
        assert each.attention_norm is not None
        assert each.mlp_norm is not None
        norms = {
            "attention_norm": replace(each.attention_norm, weight=there(each.attention_norm.weight, dtype)),
            "mlp_norm": replace(each.mlp_norm, weight=there(each.mlp_norm.weight, dtype)),
        }
        blocks.append(PoolBlock(replace(each, **norms), rope))
    head = FusedHead(model.lm_head, 1.0, None, replace(norm, weight=there(norm.weight, dtype)))
    return head, model.get_input_embeddings(), blocks


def there(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor like that on the device."""
    return torch.empty(tensor.shape, dtype=dtype, device=DEVICE)


def misaligned(launches: list[Launch]) -> list[str]:
    """Tensors that begin between multiples of 16 bytes: Triton compiles a kernel of its own for these."""
    return [
        f"{launch.kernel.fn.__name__}: argument {place} begins at byte {offset}"
        for launch in launches
        for place, argument in enumerate(launch.arguments)
        if isinstance(argument, Tensor) and (offset := argument.storage_offset() * argument.element_size()) % 16
    ]


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_blocks_in_a_pool(dtype: torch.dtype, halves: bool, launches: list[Launch]) -> None:
    _, _, blocks = blocks_there(dtype, tokens=8)
    general: Any = None
    queue: Any = _FakeQueue()
    units = PoolUnits(general, blocks, queue, halves=halves)
    pool, table = torch.empty(6, 3, 8, 64, dtype=dtype, device=DEVICE), torch.arange(14, dtype=torch.int32).view(2, 7)
    there = queue.send(table)
    for unit in range(2 + 2 * halves):
        for first, last in ((0, 1), (1, 3), (3, 7)):
            units._run_slots(unit, pool, there[:, first:last])
    assert {launch.kernel.fn.__name__ for launch in launches} == {"_norm", "_rotary", "_gated", "_scatter"}
    assert misaligned(launches) == []


def executor_there(dtype: torch.dtype, pages: int = 40) -> GpuExecutor:
    """An executor without the checks of its blocks, for which there are no numbers."""
    head, embedding, blocks = blocks_there(dtype, tokens=128)
    executor = GpuExecutor.__new__(GpuExecutor)
    skeleton: Any = SimpleNamespace(model=SimpleNamespace(get_input_embeddings=lambda: embedding))
    executor.device, executor.blocks, executor.rope = DEVICE, list(blocks), blocks[0].rope
    executor._ends = PlainEnds(skeleton, head)
    executor.heads, executor.kv_heads, executor.width = 4, 2, 16
    page = 2 * 2 * PAGE * 16 * dtype.itemsize
    Executor.__init__(executor, PagePool([page] * 2, pages * page), 300, 128, held=np.full(2, 3, dtype=np.uint8))
    executor.pages = torch.empty(pages + 1, 2, 2, PAGE, 16, dtype=dtype, device=DEVICE)
    executor._nobody = pages
    executor._vectors, executor._logits, executor._steps, executor._name = {}, {}, set(), object()
    executor.queue = _FakeQueue()  # type: ignore[assignment]
    return executor


class _FakeQueue:
    """Sends the sizes of tables, and does all work at once."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, table: Tensor) -> Tensor:
        self.sent += 1
        return torch.empty(table.shape, dtype=table.dtype, device=DEVICE)

    def run(self, key: object, work: Callable[[], None]) -> None:
        work()

    def forget(self) -> None:
        """Nothing is known."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_and_prompts_wait_for_nothing(
    dtype: torch.dtype, launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = executor_there(dtype)
    masks = np.array([[1, 1], [1, 0], [0, 1]], dtype=np.bool_)
    sequences = [executor.sequence(mask) for mask in masks]
    for count in (3, 3, 1, 2, 1):
        words = [Chunk(sequence, [5 + i]) for i, sequence in enumerate(sequences[:count])]
        assert executor.run(words).device == DEVICE
    several = [Chunk(sequence, [5, 9, 200] * (i + 9), wanted=1) for i, sequence in enumerate(sequences)]
    before = executor.queue.sent  # type: ignore[attr-defined]
    executor.run(several)
    assert executor.queue.sent - before == 2, "a prompt is sent by one vector, and which logits are wanted"  # type: ignore[attr-defined]
    names = {launch.kernel.fn.__name__ for launch in launches}
    assert {"_norm", "_rotary", "_gated", "_paged"} <= names
    splits = [launch.kernel.fn.__name__ for launch in launches].count("_split")
    monkeypatch.setattr(gpu, "LEAST_SAVED", 0)
    executor.run([Chunk(sequence, [7, 8, 9, 10], wanted=4) for sequence in sequences])
    teams = [launch.kernel.fn.__name__ for launch in launches].count("_split") - splits
    assert teams == 4, "in each of two blocks what teams share, and what is their own"
    assert misaligned(launches) == []


ROWS = (
    "_swiglu", "_geglu", "_norm", "_add_norm", "_scatter", "_rotary", "_attention", "_paged", "_decode", "_head",
    "_divergence", "_int8", "_int4", "_int4_rows", "_delta_rule",
)  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_benchmark_at_full_size(name: str, launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and its library's product of every row: on one device, and without waiting for it."""
    from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight

    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    rows = importlib.import_module("gpu_kernels")
    assert tuple(make.__name__ for make in rows._ROWS) == ROWS

    def packed(weight: Tensor, bits: int) -> PackedWeight:
        assert weight.device.type == "cpu", "weights are packed on the CPU"
        outs, columns = weight.shape
        values = torch.empty(
            outs, columns if bits == 8 else columns // 2, dtype=torch.int8 if bits == 8 else torch.uint8
        )
        scale = torch.empty(outs, columns // GROUP, dtype=torch.float16)
        return PackedWeight(values, scale, None if bits == 8 else scale.clone())

    monkeypatch.setattr(rows, "pack", packed)
    row = getattr(rows, name)(rows.FULL, DEVICE, torch.bfloat16, None)
    for way in {"ours", "ours, products by the library"} & row.ways.keys():
        result = row.ways[way]()
        assert (result[-1] if isinstance(result, tuple) else result).device == DEVICE
    if row.product is not None:
        row.product()
    assert launches or name == "_delta_rule"
    assert misaligned(launches) == []
