"""The executor for GPUs, on the CPU: plain torch in float64, the kernels in Triton's interpreter, graphs by tapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from replay import ReplayQueue
from tiny_models import FAMILIES, tiny_model
from torch import Tensor

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.kernels.memory import through_interpreter
from layercoop_fast.llama.fused_head import fused_head
from layercoop_fast.llama.gpu_block import PoolBlock
from layercoop_fast.masked.forward import free_memory, run_plan
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.pool_units import PoolUnits, make_pool_units, pool_block
from layercoop_fast.masked.queues import PlainQueue, Queue, queue_of
from layercoop_fast.masked.units import GeneralUnits
from layercoop_fast.masked.windows import Windows

CPU = torch.device("cpu")


def windows_of(
    family: str = "llama", dtype: torch.dtype = torch.float64, *, n_layers: int = 5, tokens: int = 7, **config: Any
) -> Windows:
    ids = torch.randint(3, 256, (3, tokens), generator=torch.Generator().manual_seed(0))
    return Windows(Skeleton(tiny_model(family, n_layers, **config).to(dtype)), ids)


def masks_of(n_players: int, count: int = 24) -> np.ndarray:
    return np.random.default_rng(3).random((count, n_players)) < 0.7


def states_by_mask(
    windows: Windows, units: GeneralUnits | PoolUnits, masks: np.ndarray, states: int, rows: int
) -> Tensor:
    """The last state of each distinct mask, [U, W, T, H]."""
    plan = build_plan(masks, states)
    found: dict[int, Tensor] = {}
    done = []
    run_plan(
        windows, plan, lambda mask, state: found.update({mask: state.clone()}),
        units=units, max_rows=rows, on_progress=done.append,
    )  # fmt: skip
    assert sum(done) == plan.scheduled
    return torch.stack([found[mask] for mask in range(plan.n_unique)])


def pool_units(windows: Windows, queue: Queue | None = None, *, halves: bool = False) -> PoolUnits:
    run = Sublayers(windows.skeleton).run if halves else None
    general = GeneralUnits(windows) if run is None else GeneralUnits(windows, run)
    units = make_pool_units(windows, general, queue or PlainQueue(CPU), halves=halves)
    assert units is not None
    return units


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "qwen2", "mistral", "gemma3", "smollm3", "phi3", "granite", "olmo2"]
)
def test_a_plan_in_the_pool_comes_to_the_general_paths_states(family: str, halves: bool) -> None:
    windows = windows_of(family, sliding_window=5) if family in ("gemma3", "mistral") else windows_of(family)
    units = pool_units(windows, halves=halves)
    assert units.path == "pool"
    masks = masks_of(5 * (1 + halves))
    expected = states_by_mask(windows, units.general, masks, 6, 10**6)
    for states, rows in ((100, 10**6), (100, 2 * 21), (6, 3 * 21), (1, 1)):
        found = states_by_mask(windows, units, masks, states, rows)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_blocks_that_do_not_fit_run_their_own_modules() -> None:
    windows = windows_of("llama")
    windows.skeleton.blocks[2].mlp.act_fn = torch.nn.GELU()
    units = pool_units(windows)
    assert units.path == "pool but for blocks 2"
    masks = masks_of(5)
    expected = states_by_mask(windows, units.general, masks, 6, 10**6)
    assert torch.allclose(states_by_mask(windows, units, masks, 6, 42), expected, rtol=1e-5, atol=1e-5)
    block, call = windows.skeleton.blocks[2], windows.context(1).call(2)
    assert "gated neither by SiLU nor" in str(pool_block(block, call, windows.skeleton.convention))
    capped = windows_of("gemma2")
    block, call = capped.skeleton.blocks[0], capped.context(1).call(0)
    assert "its scores have a soft cap" in str(pool_block(block, call, capped.skeleton.convention))
    assert make_pool_units(windows_of("gpt2"), GeneralUnits(windows), PlainQueue(CPU), halves=False) is None


@pytest.mark.parametrize("halves", [False, True])
def test_what_is_recorded_can_be_repeated(halves: bool) -> None:
    """Batches replay operations on the memory of the first ones, as graphs do; nothing in them waits for the device."""
    windows = windows_of("qwen3")
    queue = ReplayQueue()
    units = pool_units(windows, queue, halves=halves)
    masks = masks_of(5 * (1 + halves), count=40)
    expected = states_by_mask(windows, units.general, masks, 9, 10**6)
    for _ in range(2):
        found = states_by_mask(windows, units, masks, 9, 2 * 21)
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert queue.played > 10
    assert queue.forgotten == 0
    assert {size for _, _, size in queue.tapes} == {1, 2}  # few kinds of work
    states_by_mask(windows, units, masks, 30, 2 * 21)  # a larger pool lies elsewhere
    assert queue.forgotten == 1


@pytest.mark.parametrize("most", [1, 2, 0])
def test_missing_memory_halves_the_batches(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on, and the states are the same; where one state is too many, the error is the caller's."""
    windows = windows_of("llama")
    queue = ReplayQueue()
    units = pool_units(windows, queue)
    masks = masks_of(5, count=40)
    expected = states_by_mask(windows, units, masks, 30, 10**6)
    run, sizes = PoolBlock.run, []

    def short(block: PoolBlock, pool: Tensor, sources: Tensor, *rest: Any) -> None:
        sizes.append(len(sources))
        if len(sources) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(block, pool, sources, *rest)

    monkeypatch.setattr(PoolBlock, "run", short)
    queue.forget()
    if most == 0:
        with pytest.raises(torch.OutOfMemoryError):
            states_by_mask(windows, units, masks, 30, 10**6)
        return
    assert torch.allclose(states_by_mask(windows, units, masks, 30, 10**6), expected, rtol=1e-9)
    tried = len(sizes)
    states_by_mask(windows, units, masks, 30, 10**6)
    assert max(sizes[:tried]) > most
    assert max(sizes[tried:], default=0) <= most


def test_free_memory_of_a_gpu_is_also_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in (("mem_get_info", (100, 1000)), ("memory_reserved", 70), ("memory_allocated", 50)):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    assert free_memory(torch.device("cuda:0")) == 120


def test_results_of_a_call_are_counted_as_often_as_they_lie_in_memory() -> None:
    units = pool_units(windows_of("llama"))
    assert units.blocks[0] is not None
    assert units.bytes_a_row == round(2.5 * units.blocks[0].bytes_a_row)


def test_the_kernels_in_the_interpreter(interpreted: None) -> None:
    windows = windows_of("qwen3", torch.float32, n_layers=2, tokens=5)
    units = pool_units(windows)
    masks = np.array([[1, 0], [1, 1]], dtype=np.bool_)
    expected = states_by_mask(windows, units.general, masks, 3, 10**6)
    with through_interpreter():
        found = states_by_mask(windows, units, masks, 3, 30)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_other_windows_have_their_own_pool() -> None:
    windows = windows_of("llama")
    units = pool_units(windows)
    other = Windows(windows.skeleton, windows.ids.flip(0)[:2].contiguous())
    masks = masks_of(5, 5)
    expected = states_by_mask(other, units.general.on(other), masks, 5, 10**6)
    assert torch.allclose(states_by_mask(other, units.on(other), masks, 5, 42), expected, rtol=1e-5, atol=1e-5)


def test_states_outside_a_pool() -> None:
    windows = windows_of("llama")
    units = pool_units(windows)
    embedding = windows.context(1).embedding
    first, second = embedding.clone(), torch.empty_like(embedding)
    with torch.inference_mode():
        units.run(1, [first, embedding], [first, second])
        expected = windows.context(1).run(1, embedding)
    assert torch.allclose(first, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(second, expected, rtol=1e-5, atol=1e-5)


def test_a_head_with_the_norm_before_it() -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    ids = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    plain, own = fused_head(skeleton, ids), fused_head(skeleton, ids, own_norm=True)
    assert plain is not None
    assert own is not None
    assert plain.norm is None
    assert own.norm is not None
    context = skeleton.context(ids)
    with torch.inference_mode():
        assert torch.allclose(own.inputs(context, context.embedding), plain.inputs(context, context.embedding))
    gemma = fused_head(Skeleton(FAMILIES["gemma3"](n_layers=2)), ids, own_norm=True)
    assert gemma is not None
    assert gemma.norm is not None
    assert gemma.norm.gemma


def test_queues_without_a_device() -> None:
    queue = queue_of(CPU)
    table = torch.arange(4, dtype=torch.int32)
    sent = queue.send(table)
    fetched = queue.fetch(sent)
    seen: list[int] = []
    work: Callable[[], None] = lambda: seen.append(1)  # noqa: E731
    queue.run("a", work)
    queue.run("a", work)
    table.zero_()
    sent.zero_()
    queue.forget()
    queue.wait()
    assert fetched().tolist() == [0, 1, 2, 3]
    assert seen == [1, 1]
