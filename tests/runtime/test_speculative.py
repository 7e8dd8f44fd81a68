from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import looks_drawn_from
from tiny_models import tiny_model
from torch import Tensor, nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.draft_length import DraftLength
from layercoop_fast.runtime.executor import Chunk, Executor, Rows
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.pages import PagePool
from layercoop_fast.runtime.sampling import Sampler
from layercoop_fast.runtime.speculative import Speculator, Writer

PROMPT = torch.randint(3, 259, (21,), generator=torch.Generator().manual_seed(7)).tolist()


def opened(family: str = "llama", n_layers: int = 5, *, gentle: bool = True, **arguments: Any) -> GeneralExecutor:
    model = tiny_model(family, n_layers, **arguments)
    if gentle:  # block 2 does little, so that a draft without it is often right
        with torch.no_grad():
            for module in Skeleton(model).blocks[2].modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(0.45)
    return GeneralExecutor(Skeleton(model), 2**24)


def without(*removed: int, n_layers: int = 5) -> np.ndarray:
    mask = np.ones(n_layers, dtype=bool)
    mask[list(removed)] = False
    return mask


def begun(executor: Executor, sampling: Sampling, room: int, prompt: list[int] = PROMPT, index: int = 0) -> Writer:
    """A writer behind the prompt, its first token chosen."""
    sequence, sampler = executor.sequence(), Sampler(sampling, prompt, index=index)
    first = sampler.next(executor.run([Chunk(sequence, prompt)])[0])
    return Writer(sequence, first, sampler, room)


def plainly(executor: Executor, sampling: Sampling, tokens: int, prompt: list[int] = PROMPT) -> list[int]:
    """What the model writes by itself."""
    writer = begun(executor, sampling, tokens, prompt)
    found = [writer.last]
    while len(found) < tokens:
        found.append(writer.sampler.next(executor.run([Chunk(writer.sequence, found[-1:])])[0]))
    writer.sequence.release()
    return found


@pytest.mark.parametrize(
    ("family", "sampling"),
    [("llama", Sampling()), ("gemma3", Sampling()), ("gpt2", Sampling(repetition_penalty=1.3))],
    ids=["llama", "gemma3", "penalty"],
)
def test_greedy_tokens_are_those_of_the_model_alone(family: str, sampling: Sampling) -> None:
    executor = opened(family)
    expected = plainly(executor, sampling, 40)
    accepted = 0
    for drafted in (1, 6):
        writer = begun(executor, sampling, 100)
        speculator, found = Speculator(executor, without(2)), [writer.last]
        while len(found) < 40:
            found += speculator.round([writer], drafted)[0]
        assert found[:40] == expected
        assert writer.sequence.tokens == [*PROMPT, *found[:-1]]
        accepted += speculator.draft_length.accepted
        assert speculator.draft_length.judged > speculator.draft_length.accepted  # some were rejected, and rewound
        writer.sequence.release()
    assert accepted > 10
    assert executor.pool.used_bytes == 0


def test_a_batch_is_drafted_together_and_each_gets_its_own() -> None:
    executor = opened()
    prompts = [PROMPT, PROMPT[:9], PROMPT[3:]]
    samplings = [Sampling(), Sampling(), Sampling(repetition_penalty=1.5)]
    expected = [plainly(executor, s, 30, p) for s, p in zip(samplings, prompts, strict=True)]
    writers = [begun(executor, s, 99, p) for s, p in zip(samplings, prompts, strict=True)]
    found = [[writer.last] for writer in writers]
    speculator = Speculator(executor, without(2))
    while min(map(len, found)) < 30:
        for own, new in zip(found, speculator.round(writers, 3), strict=True):
            own += new
    assert [own[:30] for own in found] == expected


class TableExecutor(Executor):
    """A model of 8 words that looks two words back, and its draft, which says something else: tables of logits."""

    name, weight_bytes = "tables", 0

    def __init__(self) -> None:
        super().__init__(PagePool([1, 1], 2**16), 8, None)
        self.tables = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
        self.tables[1] += 0.5 * self.tables[0]

    def copy_page(self, layer: int, source: int, target: int) -> None:
        pass

    def logits(self, rows: Rows) -> Tensor:
        first = np.append(True, np.diff(rows.sequence) != 0)
        known = np.array([(sequence.tokens or [0])[-1] for sequence in rows.sequences])
        before = np.where(first, known[rows.sequence], np.roll(rows.tokens, 1))
        drafts = 1 - (rows.masks[rows.sequence, 1] > 0)
        return self.tables[drafts, before, rows.tokens][rows.wanted]


def joint(chances: Callable[[list[int]], np.ndarray], prompt: list[int], words: int) -> np.ndarray:
    """The distribution of the next three tokens [V, V, V]."""
    first = chances(prompt)
    second = np.stack([chances([*prompt, a]) for a in range(words)])
    third = np.stack([[chances([*prompt, a, b]) for b in range(words)] for a in range(words)])
    return first[:, None, None] * second[:, :, None] * third


def drawn(executor: Executor, draft: np.ndarray, asked: Sampling, prompt: list[int], count: int) -> np.ndarray:
    """Three tokens behind the prompt, by rounds of two drafts, of so many writers: how often each three came."""
    counts = np.zeros((executor.vocab_size,) * 3, dtype=np.int64)
    batch = 50  # looking for rows to share takes the square of it
    for start in range(0, count, batch):
        writers = [
            Writer(executor.sequence(), prompt[-1], Sampler(asked, prompt, index=index), 99)
            for index in range(start, start + batch)
        ]
        executor.run([Chunk(writer.sequence, prompt[:-1], wanted=0) for writer in writers])
        speculator = Speculator(executor, draft)
        found: list[list[int]] = [[] for _ in writers]
        while short := [at for at, own in enumerate(found) if len(own) < 3]:
            for at, new in zip(short, speculator.round([writers[at] for at in short], 2), strict=True):
                found[at] += new
        for writer, own in zip(writers, found, strict=True):
            counts[tuple(own[:3])] += 1
            writer.sequence.release()
    return counts


def agree(expected: np.ndarray, counts: np.ndarray) -> bool:
    """Whether all pairs of the three tokens look drawn from where they should be."""
    return all(
        looks_drawn_from(expected.sum(axis=axis).reshape(-1), counts.sum(axis=axis).reshape(-1)) for axis in range(3)
    )


@pytest.mark.parametrize(
    "sampling",
    [{"top_p": 0.8, "top_k": 6, "repetition_penalty": 2.0}, pytest.param({}, marks=pytest.mark.slow)],
    ids=str,
)
def test_sampled_tokens_have_the_distribution_of_the_model(sampling: dict[str, Any]) -> None:
    executor, prompt = TableExecutor(), [1, 4, 4]
    asked = Sampling(**{"temperature": 1.0, "seed": 5, **sampling})

    def chances(model: int) -> Callable[[list[int]], np.ndarray]:
        return lambda tokens: (
            Sampler(asked, tokens)
            .probabilities(executor.tables[model, tokens[-2], tokens[-1]][None])[0]
            .double()
            .numpy()
        )

    counts = drawn(executor, without(1, n_layers=2), asked, prompt, 1500)
    assert agree(joint(chances(0), prompt, 8), counts)
    assert not agree(joint(chances(1), prompt, 8), counts)


def test_a_tiny_model_samples_what_it_would_alone() -> None:
    executor, prompt = opened("llama", 3, gentle=False, vocab_size=6), [1, 4, 4]
    asked, draft = Sampling(temperature=1.2, seed=11), without(1, n_layers=3)

    def chances(tokens: list[int]) -> np.ndarray:
        sequence = executor.sequence()
        logits = executor.run([Chunk(sequence, tokens)])
        sequence.release()
        return Sampler(asked, tokens).probabilities(logits)[0].double().numpy()

    assert agree(joint(chances, prompt, 6), drawn(executor, draft, asked, prompt, 750))


def test_advance_takes_steps_and_rounds_as_the_pace_says() -> None:
    executor = opened()
    expected = plainly(executor, Sampling(), 50)
    writer = begun(executor, Sampling(), 49)
    drafting = DraftLength(share=0.01, acceptance=0.99)
    speculator, found = Speculator(executor, without(2), draft_length=drafting), [writer.last]
    while writer.room:
        found += speculator.advance([writer])[0]
    assert found == expected
    assert drafting.rounds
    assert drafting.tokens == 49


def refused_draft(executor: Executor) -> None:
    sequence = executor.sequence(without(2))
    executor.run([Chunk(sequence, [5], mask=without(1).astype(np.uint8) * 3)])


def refused_empty(executor: Executor) -> None:
    executor.run([Chunk(executor.sequence(), [5], mask=np.zeros(5, dtype=np.uint8))])


def refused_on_top(executor: Executor) -> None:
    sequence = executor.sequence()
    executor.run([Chunk(sequence, [5], mask=without(2).astype(np.uint8) * 3)])
    executor.run([Chunk(sequence, [5])])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (lambda executor: Speculator(executor, without()), "keeps every block"),
        (lambda executor: Speculator(executor, without(0, 1, 2, 3, 4)), "removes every block"),
        (refused_draft, "of the blocks that its sequence keeps"),
        (refused_empty, "of the blocks that its sequence keeps"),
        (refused_on_top, "truncate it"),
    ],
)
def test_what_cannot_be_drafted_is_refused(request_: Callable[[Executor], None], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        request_(opened())


def test_models_with_a_recurrent_state_have_no_drafts() -> None:
    executor = opened("mamba", gentle=False)
    with pytest.raises(RequestError, match="recurrent state"):
        Speculator(executor, without(2))
    with pytest.raises(RequestError, match="recurrent state"):
        executor.run([Chunk(executor.sequence(), [5], mask=without(2).astype(np.uint8) * 3)])
