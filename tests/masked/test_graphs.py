"""Graphs on a `torch.cuda` that is as strict as the real one, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, FakeGraph
from tiny_models import tiny_model
from torch import Tensor

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.masked.forward import run_plan
from layercoop_fast.masked.graphs import DeviceGraphs
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.pool_units import PoolUnits, make_pool_units
from layercoop_fast.masked.queues import CudaQueue
from layercoop_fast.masked.units import GeneralUnits
from layercoop_fast.masked.windows import Windows
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.gpu import GpuExecutor


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    found = FakeCuda()
    found.install(monkeypatch)
    return found


class Adding:
    """Work: total += source · source, with a product of a library and a result in between."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.source = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
        self.total = torch.zeros(2, 2)

    def __call__(self) -> None:
        self.cuda.library_call()
        self.total += self.source @ self.source

    def expected(self, times: int) -> Tensor:
        return times * (self.source @ self.source)


def test_work_is_done_twice_then_captured_and_replayed(cuda: FakeCuda) -> None:
    graphs, work = DeviceGraphs(FakeCuda.DEVICE), Adding(cuda)
    for times in range(1, 7):
        graphs.run("key", work)
        assert torch.equal(work.total, work.expected(times))
        assert len(graphs) == (times > 2)
    replayed = cuda.replayed
    work.source *= 2  # a graph reads the same memory, whatever lies there
    work.total.zero_()
    graphs.run("key", work)
    assert torch.equal(work.total, work.expected(1))
    assert cuda.replayed == replayed + 1
    assert graphs.why_off is None
    assert cuda.current is cuda.default


def test_what_was_forgotten_is_captured_again_in_other_memory(cuda: FakeCuda) -> None:
    """Twice: what a workspace keeps alive of the first graphs' memory must not be captured into."""
    graphs = DeviceGraphs(FakeCuda.DEVICE)
    works = [Adding(cuda), Adding(cuda)]
    for _ in range(3):
        for work in works:
            work.total.zero_()
        for _ in range(5):
            for name, work in enumerate(works):
                graphs.run(name, work)
        assert all(torch.equal(work.total, work.expected(5)) for work in works)
        assert len(graphs) == 2
        graphs.forget()
        assert len(graphs) == 0
    assert graphs.why_off is None


def test_a_capture_that_fails_ends_graphs_and_nothing_else(cuda: FakeCuda) -> None:
    graphs, work = DeviceGraphs(FakeCuda.DEVICE), Adding(cuda)
    for _ in range(2):
        graphs.run("key", work)
    cuda.break_captures = True
    with pytest.warns(UserWarning, match="nothing is captured in graphs on cpu: CUDA error: operation failed"):
        graphs.run("key", work)
    for _ in range(3):
        graphs.run("key", work)
    assert torch.equal(work.total, work.expected(6))
    assert cuda.current is cuda.default
    assert not cuda.waiting_for_end
    assert graphs.why_off is not None


def test_work_that_waits_for_the_device_stays_plain(cuda: FakeCuda) -> None:
    graphs, seen = DeviceGraphs(FakeCuda.DEVICE), []
    numbers = torch.ones(3)

    def work() -> None:
        seen.append(numbers.sum().item())

    for _ in range(2):
        graphs.run("key", work)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        graphs.run("key", work)
    graphs.run("key", work)
    assert seen == [3.0] * 4
    assert cuda.capturing is None


def test_missing_memory_in_a_capture_is_the_callers_to_know(cuda: FakeCuda) -> None:
    graphs, work, full = DeviceGraphs(FakeCuda.DEVICE), Adding(cuda), False

    def filling() -> None:
        work()
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for _ in range(2):
        graphs.run("key", filling)
    full = True
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("key", filling)
    assert cuda.current is cuda.default
    assert cuda.capturing is None
    full = False
    for _ in range(4):
        graphs.run("key", filling)
    assert graphs.why_off is None
    assert len(graphs) == 1
    assert torch.equal(work.total, work.expected(6))


def test_errors_of_the_work_itself_are_raised(cuda: FakeCuda) -> None:
    graphs, calls = DeviceGraphs(FakeCuda.DEVICE), []

    def work() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise ValueError("no such slot")

    for _ in range(2):
        graphs.run("key", work)
    with pytest.warns(UserWarning, match="no such slot"), pytest.raises(ValueError, match="no such slot"):
        graphs.run("key", work)
    assert cuda.capturing is None


@pytest.mark.parametrize("behind", [False, True])
def test_only_what_waits_for_launches_is_captured(cuda: FakeCuda, behind: bool) -> None:
    graphs, work = DeviceGraphs(FakeCuda.DEVICE), Adding(cuda)
    graphs.check()
    captured = cuda.captured
    cuda.device_seconds, cuda.behind = (0.0, True) if behind else (1.0, False)
    for times in range(1, 6):
        graphs.run("key", work)
        assert torch.equal(work.total, work.expected(times))
    assert cuda.captured == captured
    cuda.behind = False  # the device has caught up, and it was not the device's time
    graphs.run("key", work)
    assert cuda.captured == captured + behind


def test_no_more_graphs_than_that(cuda: FakeCuda) -> None:
    graphs = DeviceGraphs(FakeCuda.DEVICE, most=3)
    works = [Adding(cuda) for _ in range(5)]
    for _ in range(9):
        for name, work in enumerate(works):
            graphs.run(name, work)
        assert len(graphs) <= 3
    assert all(torch.equal(work.total, work.expected(9)) for work in works)


def test_a_device_that_replays_something_else_has_no_graphs(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGraph, "replay", lambda graph: None)
    graphs, work = DeviceGraphs(FakeCuda.DEVICE), Adding(cuda)
    with pytest.warns(UserWarning, match="a replayed product was not the product"):
        graphs.run("key", work)
    for _ in range(4):
        graphs.run("key", work)
    assert torch.equal(work.total, work.expected(5))


def pool_units(windows: Windows, queue: CudaQueue) -> PoolUnits:
    units = make_pool_units(windows, GeneralUnits(windows), queue, halves=False)
    assert units is not None
    return units


def states(windows: Windows, units: PoolUnits | GeneralUnits, masks: np.ndarray, room: int) -> Tensor:
    found: dict[int, Tensor] = {}
    plan = build_plan(masks, room)
    take: Callable[[int, Tensor], None] = lambda mask, state: found.update({mask: state.clone()})  # noqa: E731
    run_plan(windows, plan, take, units=units, max_rows=2 * windows.ids.numel())
    return torch.stack([found[mask] for mask in range(plan.n_unique)])


def test_plans_of_two_games_on_one_device(cuda: FakeCuda) -> None:
    """They share graphs' memory and streams, and a pool that grows makes the other's work new too."""
    queue, random = CudaQueue(FakeCuda.DEVICE), np.random.default_rng(3)
    masks = random.random((40, 5)) < 0.7
    games = []
    for seed in range(2):
        ids = torch.randint(3, 256, (3, 7), generator=torch.Generator().manual_seed(seed))
        windows = Windows(Skeleton(tiny_model("qwen3", 5).double()), ids)
        games.append((windows, pool_units(windows, queue)))
    for room in (9, 9, 9, 30, 30, 30, 9):
        for windows, units in games:
            found = states(windows, units, masks, room)
            expected = states(windows, units.general, masks, room)
            assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert cuda.replayed > 50
    assert queue.graphs.why_off is None


def test_steps_of_generation_are_captured_and_bounded(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layercoop_fast.runtime.gpu.MOST_STEPS", 2)
    for name in ("rms_norm", "rotary", "swiglu"):  # what the core computes is no operation of torch's, to be recorded
        monkeypatch.setattr(f"layercoop_fast.kernels.{name}.is_native", lambda tensor: False)
    model = tiny_model("llama", 4)
    executors = [
        GeneralExecutor(Skeleton(model), 2**21),
        GpuExecutor(Skeleton(model), 2**21, queue=CudaQueue(FakeCuda.DEVICE)),
    ]
    masks = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1]], dtype=np.bool_)
    found = []
    for executor in executors:
        sequences = [executor.sequence(mask) for mask in masks]
        words = executor.best([Chunk(sequence, [5, 9, 200]) for sequence in sequences])
        texts = [words.tolist()]
        for turn in range(24):
            some = [0, 1, 2] if turn < 12 else [0] if turn % 2 else [1]
            words[some] = executor.best([Chunk(sequences[i], [int(words[i])]) for i in some])
            texts.append(words.tolist())
        found.append(texts)
    assert found[0] == found[1]
    assert cuda.replayed > 8


def test_what_a_skipped_block_computes_may_overflow() -> None:
    """A sequence that skips a block must not get its infinities, times 0, in a step with one that keeps it."""
    model = tiny_model("llama", 3)
    executor = GpuExecutor(Skeleton(model), 2**21)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    kept, skipped = (executor.sequence(np.array(mask, dtype=np.bool_)) for mask in ([1, 1, 1], [1, 0, 1]))
    executor.run([Chunk(kept, [5, 9]), Chunk(skipped, [80, 3])])  # nothing in common, or they would share blocks
    logits = executor.run([Chunk(kept, [7]), Chunk(skipped, [11])])
    assert not logits[0].isfinite().all(), "the block does not overflow: this shows nothing"
    assert logits[1].isfinite().all()


def test_tables_go_there_and_results_come_back(cuda: FakeCuda) -> None:
    queue = CudaQueue(FakeCuda.DEVICE)
    table = torch.arange(6, dtype=torch.int32)
    sent = queue.send(table)
    fetched = queue.fetch(sent.double())
    table.zero_()
    assert fetched().tolist() == [0, 1, 2, 3, 4, 5]
