"""Log-likelihoods under many masks, against the model itself with blocks taken out, one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.masks.text import blocks_mask
from layercoop_fast.tasks import likelihoods
from layercoop_fast.tasks.likelihoods import Likelihoods
from layercoop_fast.texts.token_tree import Scored

L = 4
MASKS = ("full", "1", "1-2", "1.attn,3.mlp", "full")


def sequences(longest: int = 30) -> list[Scored]:
    """Contexts with several options: some of one token, one that is another's beginning, equal ones, long ones."""
    draw = np.random.default_rng(0)
    found = []
    for length in (1, 3, 9, longest):
        context = draw.integers(3, 250, length).tolist()
        options = [draw.integers(3, 250, count).tolist() for count in (1, 1, 4, 7)]
        options += [options[3][:3], options[3]]
        found += [Scored((*context, *option), length) for option in options]
    order = draw.permutation(len(found))
    return [found[number] for number in order]


def masks(texts: tuple[str, ...] = MASKS) -> list[Halves]:
    return [blocks_mask(text, L) for text in texts]


def expected(family: str, mask: str, wanted: list[Scored]) -> tuple[list[float], list[bool]]:
    """By the model's own forward pass, a sequence at a time; halves of blocks go by zeros."""
    model = tiny_model(family, L, seed=1)
    halves = blocks_mask(mask, L)
    for layer, block in enumerate(model.model.layers):
        if not halves[layer] & 1:
            block.self_attn.o_proj.weight.data.zero_()
        if not halves[layer] & 2:
            block.mlp.down_proj.weight.data.zero_()
    sums, greedy = [], []
    with torch.inference_mode():
        for one in wanted:
            ids = torch.tensor([one.tokens])
            logits = model(ids).logits[0, one.start - 1 : -1].double()
            own = logits.log_softmax(-1).gather(1, ids[0, one.start :, None])
            sums.append(float(own.sum()))
            greedy.append(bool((logits.argmax(-1) == ids[0, one.start :]).all()))
    return sums, greedy


@pytest.mark.parametrize(("family", "texts"), [("llama", MASKS), ("gemma3", ("full", "2"))], ids=["llama", "gemma3"])
def test_each_sequence_has_the_likelihood_it_has_alone(family: str, texts: tuple[str, ...]) -> None:
    wanted = sequences()
    measured = Likelihoods(Skeleton(tiny_model(family, L, seed=1)), masks(texts)).measure(wanted)
    for row, text in enumerate(texts):
        sums, greedy = expected(family, text, wanted)
        np.testing.assert_allclose(measured.logprobs[row], sums, rtol=0, atol=2e-4)
        assert measured.greedy[row].tolist() == greedy


def test_greedy_is_told_where_the_model_itself_continues() -> None:
    model = tiny_model("llama", L, seed=1)
    own = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, pad_token_id=2)[0].tolist()
    other = [*own[:-1], (own[-1] + 1) % 250]
    measured = Likelihoods(Skeleton(model), masks(("full",))).measure([Scored(tuple(t), 3) for t in (own, other)])
    assert measured.greedy.tolist() == [[True, False]]


def test_chunks_and_windows_change_no_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, and sequences that are too long for trees, which go whole."""
    wanted = sequences()
    skeleton = Skeleton(tiny_model("llama", L, seed=1))
    whole = Likelihoods(skeleton, masks())
    at_once = whole.measure(wanted)
    monkeypatch.setattr(likelihoods, "CHUNK_TOKENS", 24)
    monkeypatch.setattr(likelihoods, "PACK_TOKENS", 20)
    parts = Likelihoods(skeleton, masks())
    in_parts = parts.measure(wanted)
    np.testing.assert_allclose(in_parts.logprobs, at_once.logprobs, rtol=0, atol=2e-4)
    assert np.array_equal(in_parts.greedy, at_once.greedy)
    assert whole.work.alone == parts.work.alone


def test_shared_contexts_and_blocks_are_computed_once() -> None:
    """Four options of two tokens behind a context of 40, under two masks that differ at the last block alone."""
    context = list(range(10, 50))
    wanted = [Scored((*context, first, 7), 40) for first in (100, 101, 102, 103)]
    measured = Likelihoods(Skeleton(tiny_model("llama", L, seed=1)), masks(("full", "3")))
    measured.measure(wanted)
    assert measured.work.alone == 4 * 41 * (4 + 3)
    assert measured.work.computed == (40 + 4) * 4


@pytest.mark.parametrize("family", [pytest.param("mamba2", marks=pytest.mark.slow), "mistral"])
def test_models_without_trees_compute_every_sequence_whole(family: str) -> None:
    """A recurrent model, and one whose sliding window is shorter than the sequences."""
    model = tiny_model(family, L, seed=1, **({"sliding_window": 8} if family == "mistral" else {}))
    wanted = sequences()
    measured = Likelihoods(Skeleton(model), masks(("full",))).measure(wanted)
    with torch.inference_mode():
        for found, one in zip(measured.logprobs[0], wanted, strict=True):
            ids = torch.tensor([one.tokens])
            own = model(ids).logits[0, one.start - 1 : -1].log_softmax(-1).gather(1, ids[0, one.start :, None])
            assert found == pytest.approx(float(own.sum()), abs=2e-4)


def test_tokens_that_the_model_lacks_are_refused() -> None:
    measured = Likelihoods(Skeleton(tiny_model("llama", L)), masks(("full",)))
    with pytest.raises(RequestError, match="the tokenizer gives token 999, the model's vocabulary has 300"):
        measured.measure([Scored((5, 999), 1)])


def test_too_little_memory_is_refused_with_what_would_do() -> None:
    measured = Likelihoods(Skeleton(tiny_model("llama", L)), masks(("full",)), memory=100)
    with pytest.raises(RequestError, match="the smallest that works is"):
        measured.measure(sequences())
