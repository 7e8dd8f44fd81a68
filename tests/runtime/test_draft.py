from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.draft import DraftGame, Times, find_draft, measured_times
from layercoop_fast.runtime.draft_length import DraftLength, speed_up
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.sampling import Sampler
from layercoop_fast.runtime.speculative import Speculator, Writer

PROMPT = torch.randint(3, 259, (9,), generator=torch.Generator().manual_seed(3)).tolist()
TIMES = Times(step=1.0, rest=0.1, row=0.02, n_layers=6)


@pytest.fixture(scope="module")
def executor() -> GeneralExecutor:
    """Blocks 1, 3 and 4 do little."""
    model = tiny_model("llama", 6)
    with torch.no_grad():
        for layer in (1, 3, 4):
            for module in Skeleton(model).blocks[layer].modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(0.3)
    return GeneralExecutor(Skeleton(model), 2**24)


def written(executor: GeneralExecutor, tokens: int) -> list[int]:
    sequence, text = executor.sequence(), list(PROMPT)
    text += executor.best([Chunk(sequence, text)]).tolist()
    while len(text) < len(PROMPT) + tokens:
        text += executor.best([Chunk(sequence, text[-1:])]).tolist()
    sequence.release()
    return text


def test_acceptance_is_what_drafting_meets(executor: GeneralExecutor) -> None:
    text = written(executor, 41)
    game = DraftGame(executor, [text], tokens=41, times=TIMES)
    masks = np.array([[1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=bool)
    game(masks)
    for mask in masks[:2]:
        # Drafts of one token, each behind what is verified.
        sequence = executor.sequence()
        executor.run([Chunk(sequence, text[: len(PROMPT)], wanted=0)])
        alike = []
        for at in range(len(PROMPT), len(text) - 1):
            said = executor.best([Chunk(sequence, text[at : at + 1], mask=mask.astype(np.uint8) * 3)]).tolist()
            sequence.truncate(at)
            executor.run([Chunk(sequence, text[at : at + 1], wanted=0)])
            alike.append(said[0] == text[at + 1])
        sequence.release()
        assert game.acceptance[mask.tobytes()] == pytest.approx(np.mean(alike), abs=0.13)
    assert game.acceptance[masks[2].tobytes()] == 1
    assert executor.pool.used_bytes == 0


def test_acceptance_of_sampled_drafts_is_what_rejection_keeps(executor: GeneralExecutor) -> None:
    text, asked = written(executor, 40), Sampling(temperature=1.0, top_k=20, repetition_penalty=1.2)
    mask = np.array([1, 0, 1, 1, 0, 1], dtype=bool)
    game = DraftGame(executor, [text], tokens=40, times=TIMES, sampling=asked)
    game(mask)
    kept = tried = 0
    for index in range(60):
        sequence = executor.sequence()
        executor.run([Chunk(sequence, text[:20], wanted=0)])
        pace = DraftLength(0.5)
        writer = Writer(sequence, text[20], Sampler(asked, text[:21], index=index), 20)
        Speculator(executor, mask, pace=pace).round([writer], 2)
        kept, tried = kept + pace.accepted, tried + pace.judged
        sequence.release()
    assert game.acceptance[mask.tobytes()] == pytest.approx(kept / tried, abs=0.15)


def test_the_worth_is_the_speed_up_and_the_search_finds_the_best(executor: GeneralExecutor) -> None:
    found = find_draft(executor, [PROMPT, PROMPT[::-1]], tokens=24, times=TIMES)
    texts = [[*prompt, *written_behind(executor, prompt, 24)] for prompt in (PROMPT, PROMPT[::-1])]
    game = DraftGame(executor, texts, tokens=24, times=TIMES)
    every = np.array(list(product([False, True], repeat=6)), dtype=bool)
    worths = game(every)
    assert found.speed_up == pytest.approx(worths[~every.all(axis=1)].max(), rel=0.03)
    assert set(found.removed) <= {1, 3, 4}
    assert found.share == pytest.approx(0.1 + 0.9 * found.mask.sum() / 6)
    assert found.speed_up == speed_up(found.acceptance, found.length, found.share, 1 + 0.02 * found.length, 1.0)
    # Nothing kept is never right, and drafting all of it costs its time.
    assert worths[0] == pytest.approx(1 / (0.1 + 1.02))
    assert worths[-1] < 1


def written_behind(executor: GeneralExecutor, prompt: list[int], tokens: int) -> list[int]:
    sequence = executor.sequence()
    found = executor.best([Chunk(sequence, prompt)]).tolist()
    while len(found) < tokens:
        found += executor.best([Chunk(sequence, found[-1:])]).tolist()
    sequence.release()
    return found


def test_times_are_a_line_in_the_blocks_kept(executor: GeneralExecutor) -> None:
    times = measured_times(executor, PROMPT, repeats=2)
    assert 0 < times.draft(1) < times.draft(3) < times.draft(6) == pytest.approx(times.step)
    assert times.verify(1) == times.step <= times.verify(4)
    assert executor.pool.used_bytes == 0


def test_blocks_that_were_left_out_at_opening_are_no_players() -> None:
    held = np.array([3, 0, 3, 3], dtype=np.uint8)
    executor = GeneralExecutor(Skeleton(tiny_model("llama", 4)), 2**22, held)
    found = find_draft(executor, [PROMPT], tokens=8, times=Times(1.0, 0.1, 0.02, 3))
    assert not found.mask[1]
    assert 1 in found.removed
    assert len(found.removed) > 1


@pytest.mark.parametrize(
    ("prompts", "arguments", "said"),
    [
        ([], {}, "give one prompt or more"),
        ([[]], {}, "give one prompt or more"),
        ([PROMPT], {"tokens": 0}, "give one prompt or more"),
        ([PROMPT], {"budget": 11}, "two masks for each block at least: 12, not 11"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    executor: GeneralExecutor, prompts: list[list[int]], arguments: dict[str, int], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        find_draft(executor, prompts, **arguments)


def test_a_recurrent_model_has_no_drafts() -> None:
    executor = GeneralExecutor(Skeleton(tiny_model("mamba", 3)), 2**20)
    with pytest.raises(RequestError, match="recurrent"):
        find_draft(executor, [PROMPT])
