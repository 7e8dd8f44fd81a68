"""The executor for GPUs, on the CPU: by the kernels' oracles, and by the kernels in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.frame import interpreted
from layercoop_fast.kernels.memory import through_interpreter
from layercoop_fast.llama.block import UnfitError
from layercoop_fast.masked.queues import PlainQueue
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.gpu import MOST_ROWS, GpuExecutor

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGET = 2**21
PROMPTS = [[5, 9, 200, 31, 7] * 4, [5, 9, 200, 31, 7] * 4, [80, 3, 3], [11]]
MASKS = [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [0, 1, 1, 1, 0], [1, 0, 1, 0, 1]]


class CountingQueue(PlainQueue):
    """How often each kind of work came."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.keys: list[object] = []

    def run(self, key, work) -> None:
        """Do it."""
        self.keys.append(key)
        work()


@pytest.fixture
def skeleton() -> Skeleton:
    return Skeleton(tiny_model("qwen3", 5))


def texts(executor: Executor, n_new: int) -> tuple[list[torch.Tensor], int]:
    """Logits of prompts that share beginnings, of single tokens under four masks, and of a few tokens at once."""
    sequences = [executor.sequence(np.array(mask, dtype=bool)) for mask in MASKS]
    found = [executor.run([Chunk(s, p, wanted=1) for s, p in zip(sequences, PROMPTS, strict=True)])]
    for number in range(n_new):
        found.append(
            executor.run([Chunk(sequence, [(7 * number + at) % 250]) for at, sequence in enumerate(sequences)])
        )
    found.append(executor.run([Chunk(sequences[1], [4, 5, 6], wanted=3), Chunk(sequences[3], [9])]))
    sequences[0].truncate(3)
    found.append(executor.run([Chunk(sequences[0], [8])]))
    return [logits.clone() for logits in found], executor.computed


def assert_alike(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max() / other.abs().max()) < tolerance


def test_logits_are_those_of_the_models_own_blocks(skeleton: Skeleton) -> None:
    expected, computed = texts(GeneralExecutor(skeleton, BUDGET), 6)
    queue = CountingQueue()
    found, own = texts(GpuExecutor(skeleton, BUDGET, queue=queue), 6)
    assert_alike(found, expected, 1e-5)
    assert own == computed, "beginnings are shared"
    assert len(queue.keys) == 8
    assert len(set(queue.keys)) == 2, "four tokens of several masks are one kind of work, one token another"


def test_drafts_are_verified_by_a_step_that_comes_back(skeleton: Skeleton) -> None:
    """Three proposals and one more of each sequence, over the border of a page too, and again behind what was taken."""
    found: list[list[torch.Tensor]] = []
    queue = CountingQueue()
    for executor in (GeneralExecutor(skeleton, BUDGET), GpuExecutor(skeleton, BUDGET, queue=queue)):
        sequences = [executor.sequence(np.array(mask, dtype=bool)) for mask in MASKS[:3]]
        prompts = [list(range(3, 3 + length)) for length in (14, 70, 5)]
        executor.run([Chunk(sequence, prompt) for sequence, prompt in zip(sequences, prompts, strict=True)])
        queue.keys.clear()
        mine = []
        for turn in range(3):
            chunks = [Chunk(sequence, [9 * turn + at, 7, 30, 2], wanted=4) for at, sequence in enumerate(sequences)]
            mine.append(executor.run(chunks).clone())
            for sequence in sequences:
                sequence.truncate(sequence.length - 2)
        found.append(mine)
    assert_alike(*found, 1e-5)
    assert len(queue.keys) == 3
    assert len(set(queue.keys)) == 1
    queue.keys.clear()
    again = GpuExecutor(skeleton, BUDGET, queue=queue)
    sequence = again.sequence()
    for tokens in ([5] * MOST_ROWS, [6] * 4, [7] * 3, [8] * (MOST_ROWS + 1)):
        again.run([Chunk(sequence, tokens)])
    assert len(queue.keys) == 3, "a long prompt is no step"
    assert len(set(queue.keys)) == 2, "three tokens and four are one kind of work"


def test_the_kernels_in_the_interpreter() -> None:
    if not interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: its kernels run on the GPU here")
    skeleton = Skeleton(tiny_model("qwen3", 2))
    found = []
    for executor in (GpuExecutor(skeleton, BUDGET), GeneralExecutor(skeleton, BUDGET)):
        sequences = [executor.sequence(np.array(mask, dtype=bool)) for mask in ([1, 1], [1, 0])]
        with through_interpreter(), np.errstate(all="ignore"):
            prompt = [5, 9, 200] * (MOST_ROWS // 3)  # of both sequences too long for a step
            of_prompts = executor.run([Chunk(sequence, prompt) for sequence in sequences]).clone()
            of_steps = [
                executor.run([Chunk(sequence, tokens, wanted=len(tokens)) for sequence in sequences]).clone()
                for tokens in ([7], [8, 9, 10])
            ]
            found.append([of_prompts, *of_steps])
    assert_alike(*found, 1e-5)


def test_halves_and_pages_that_come_back(skeleton: Skeleton) -> None:
    executor, general = GpuExecutor(skeleton, BUDGET), GeneralExecutor(skeleton, BUDGET)
    halves = np.array([3, 1, 2, 3, 0], dtype=np.uint8)
    for _ in range(2):
        found = []
        for each in (executor, general):
            sequence = each.sequence(halves)
            each.run([Chunk(sequence, list(range(3, 21)))])
            found.append(each.run([Chunk(sequence, [9])]).clone())
            sequence.release()
        assert_alike(found[:1], found[1:], 1e-5)
    assert executor.pool.used == 0


def test_blocks_that_are_not_held_take_no_pages(skeleton: Skeleton) -> None:
    held = np.array([3, 0, 3, 3, 3], dtype=np.uint8)
    executor, general = GpuExecutor(skeleton, BUDGET, held), GeneralExecutor(skeleton, BUDGET)
    whole = general.run([Chunk(general.sequence(held), [5, 6, 7])])
    assert_alike([executor.run([Chunk(executor.sequence(), [5, 6, 7])])], [whole], 1e-5)
    with pytest.raises(RequestError, match=r"a budget of 100 bytes .* holds no token: the smallest that works is"):
        GpuExecutor(skeleton, 100)


@pytest.mark.parametrize("family", ["smollm3", "phi3", "olmo2"])
def test_blocks_of_other_forms(family: str) -> None:
    skeleton = Skeleton(tiny_model(family, 4))
    chunks = []
    for executor in (GpuExecutor(skeleton, BUDGET), GeneralExecutor(skeleton, BUDGET)):
        sequence = executor.sequence(np.array([3, 3, 0, 3], dtype=np.uint8))
        chunks.append(
            [executor.run([Chunk(sequence, list(range(3, 21)))]).clone(), executor.run([Chunk(sequence, [9])])]
        )
    assert_alike(*chunks, 1e-5)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt2", "does more to its embedding|it has no attention"),
        ("gemma3", "its sliding window is shorter than its texts may be"),
        ("mistral", "its sliding window is shorter than its texts may be"),
    ],
)
def test_what_does_not_fit_says_why(family: str, why: str) -> None:
    with pytest.raises(UnfitError, match=why):
        GpuExecutor(Skeleton(tiny_model(family, 3)), BUDGET)
    with pytest.raises(UnfitError, match="halves of its blocks are left out"):
        GpuExecutor(Skeleton(tiny_model("llama", 2)), BUDGET, np.array([3, 1], dtype=np.uint8))
