from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import looks_drawn_from
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.sampling import Sampler

CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 0.8, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 30.0, "top_p": 0.97},  # flat: the nucleus is most of the vocabulary
    {"temperature": 1.2, "min_p": 0.2},
    {"temperature": 1.0, "repetition_penalty": 1.4},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
]


def reference(logits: torch.Tensor, tokens: list[int], asked: dict[str, Any]) -> torch.Tensor:
    """transformers' processors, in the order in which its `generate` puts them."""
    steps = LogitsProcessorList()
    if "repetition_penalty" in asked:
        steps.append(RepetitionPenaltyLogitsProcessor(asked["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(asked["temperature"]))
    if "top_k" in asked:
        steps.append(TopKLogitsWarper(asked["top_k"]))
    if "top_p" in asked:
        steps.append(TopPLogitsWarper(asked["top_p"]))
    if "min_p" in asked:
        steps.append(MinPLogitsWarper(asked["min_p"]))
    return steps(torch.tensor([tokens]), logits[None].double())[0].softmax(dim=-1)


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_choices_among_the_likeliest_are_those_among_all(top_k: int) -> None:
    logits = torch.randn(100, 1201, generator=torch.Generator().manual_seed(top_k)).mul(2)
    for top_p, rows in ((0.9, logits), (1.0, logits.round(decimals=1))):  # those have equals
        asked = Sampling(temperature=1.3, top_k=top_k, top_p=top_p, min_p=0.01, seed=4)
        among, all_ = Sampler(asked), Sampler(asked)
        for row in rows:
            likeliest = row.sort(descending=True, stable=True)
            beyond = likeliest.values[top_k - 1] == likeliest.values[asked.reach]
            near = len(row) if beyond else asked.reach
            assert among.next_among(likeliest.values[:near], likeliest.indices[:near]) == all_.next(row)
    assert Sampler(Sampling()).next_among(*row.topk(1)) == int(row.argmax())
    assert [Sampling(**each).reach > 0 for each in CASES].count(True) == 2
    with pytest.raises(RunError, match="not finite"):
        among.next_among(torch.full((50,), math.nan), torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("asked", CASES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 7, 1201])
def test_distributions_are_those_of_transformers(asked: dict[str, Any], vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(3, vocabulary, generator=generator) * 3
    tokens = [0, vocabulary // 2]
    following = [vocabulary - 1, vocabulary // 3]
    ours = Sampler(Sampling(**asked), tokens).probabilities(logits, following)
    for row in range(3):
        expected = reference(logits[row], [*tokens, *following[:row]], asked)
        assert torch.equal(ours[row] > 0, expected > 0)
        torch.testing.assert_close(ours[row].double(), expected, rtol=2e-5, atol=1e-9)
    alone = Sampler(Sampling(**asked), tokens).probabilities(logits[2:], following, first=2)
    assert torch.equal(alone, ours[2:])


def test_ties_at_the_k_th_stay_as_in_transformers() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    ours = Sampler(Sampling(temperature=1.0, top_k=2)).probabilities(logits[None])[0]
    assert ours.nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("temperature", [1e-30, 1e-5])
def test_a_tiny_temperature_is_all_but_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 5.0, 4.9, -3.0]])
    assert Sampler(Sampling(temperature=temperature)).probabilities(logits)[0].tolist() == [0, 1, 0, 0]


def test_greedy_choices_feel_the_repetition_penalty_and_what_follows() -> None:
    logits = torch.tensor([[3.0, 2.9, -1.0], [3.0, 2.9, -1.0]])
    assert Sampler(Sampling()).choose(logits) == [0, 0]
    penalised = Sampler(Sampling(repetition_penalty=1.5))
    assert penalised.choose(logits, [0]) == [0, 1]
    assert penalised.probabilities(logits, [0]).argmax(dim=-1).tolist() == [0, 1]
    assert [penalised.next(logits[0]) for _ in range(3)] == [0, 1, 0]


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_k=4, seed=3))
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, 1.5, -9.0])
    expected = sampler.probabilities(logits[None])[0].double().numpy()
    counts = np.bincount([sampler.next(logits) for _ in range(4000)], minlength=6)
    assert looks_drawn_from(expected, counts)
    assert not looks_drawn_from(np.roll(expected, 1), counts)


def test_a_seed_and_a_number_say_what_is_drawn() -> None:
    logits = torch.zeros(1000)

    def drawn(seed: int | None, index: int = 0) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), index=index)
        return [sampler.next(logits) for _ in range(8)]

    assert drawn(5) == drawn(5)
    assert len({tuple(drawn(*which)) for which in ((5, 0), (5, 1), (6, 0), (None, 0), (None, 0))}) == 5


def test_what_cannot_be_drawn_is_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=1.0))
    sampler.uniform = lambda: 1.0 - 2**-53  # type: ignore[method-assign]
    assert sampler.draw(torch.tensor([0.0, 0.3, 0.7, 0.0])) == 2
    sampler.uniform = lambda: 0.0  # type: ignore[method-assign]
    assert sampler.draw(torch.tensor([0.0, 0.3, 0.7, 0.0])) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"temperature": math.nan}, "temperature must be a number, 0 or more, not nan"),
        ({"temperature": -0.5}, "temperature must be a number, 0 or more, not -0.5"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.2}, "top_p must be a number, between 0 and 1, not 1.2"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": -1}, "top_k must be a whole number of 0 or more, not -1"),
        ({"top_k": 2.5}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, not -1"),
    ],
    ids=str,
)
def test_numbers_without_a_meaning_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Sampling(**asked)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_fails_is_no_choice(bad: float, temperature: float) -> None:
    logits = torch.zeros(5)
    logits[3] = bad
    with pytest.raises(RunError, match="not finite"):
        Sampler(Sampling(temperature=temperature)).next(logits)
