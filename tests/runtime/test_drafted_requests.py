"""Requests written with drafts: answers, and what is left behind, as without; on an executor that checks its reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_executor import FakeExecutor, next_word
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_tiny
from torch import Tensor

from layercoop_fast import LayerSkipModel, RequestError
from layercoop_fast.masks.halves import read_mask
from layercoop_fast.runtime import speculative
from layercoop_fast.runtime.batching import Batcher
from layercoop_fast.runtime.draft import Draft
from layercoop_fast.runtime.draft_length import DraftLength
from layercoop_fast.runtime.executor import Rows
from layercoop_fast.runtime.pages import PoolFullError
from layercoop_fast.runtime.requests import Request
from layercoop_fast.runtime.speculative import Speculators, Writer


class Drafting(FakeExecutor):
    """A draft says what the whole model says, but after every third text."""

    def logits(self, rows: Rows) -> Tensor:
        out = super().logits(rows)
        for at, row in enumerate(rows.wanted.tolist()):
            number = int(rows.sequence[row])
            sequence = rows.sequences[number]
            new = rows.tokens[(rows.sequence == number) & (np.arange(len(rows.tokens)) <= row)].tolist()
            text = [*sequence.tokens, *new]
            if (rows.masks[number] != sequence.mask).any() and sum(text) % 3:
                out[at] = 0
                out[at, next_word(sequence.mask, text)] = 1
        return out


def halves(mask: str) -> np.ndarray:
    return read_mask(np.array([bit == "1" for bit in mask]), len(mask))


def request(prompt: list[int], mask: str, draft: str | None, n_new: int) -> Request:
    within = None if draft is None else halves(draft) & halves(mask)
    return Request(tuple(prompt), halves(mask), n_new, draft=within)


def expected(asked: Request) -> list[int]:
    tokens = list(asked.prompt)
    for _ in range(asked.max_new_tokens):
        tokens.append(next_word(asked.mask, tokens))
    return tokens[len(asked.prompt) :]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three drafts whenever there is room."""
    monkeypatch.setattr(DraftLength, "length", lambda self, room: min(3, room - 1))


REQUESTS = st.lists(
    st.builds(
        lambda length, flip, masks, n_new: request([0] * (length - 1) + [flip], *masks, n_new),
        st.integers(1, 60),
        st.integers(0, 1),
        st.sampled_from([("111", "100"), ("111", "011"), ("110", "100"), ("111", None)]),
        st.integers(1, 24),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.usefixtures("always")
def test_answers_are_those_without_drafts_under_any_memory() -> None:
    rounds = 0

    @settings(max_examples=40, deadline=None)
    @given(asked=REQUESTS, alike=st.booleans(), pages=st.sampled_from([18, 25, 60]))
    def check(asked: list[Request], alike: bool, pages: int) -> None:
        nonlocal rounds
        if alike:
            asked = [replace(one, mask=asked[0].mask, draft=asked[0].draft) for one in asked]
        batcher = Batcher(Drafting(pages=pages), prefill_tokens=40)
        for _ in range(2):
            runnings = [batcher.add(one) for one in asked]
            batcher.run()
            assert [running.result().tokens for running in runnings] == [expected(one) for one in asked]
        held = {
            (layer, page)
            for entry in batcher.tree._entries
            for layer, page in zip(entry.layers.tolist(), entry.pages.tolist(), strict=True)
        }
        assert batcher.executor.pool.used == len(held)
        rounds += batcher.speculators.counts()["rounds"]

    check()
    assert rounds > 100


@pytest.mark.usefixtures("always")
def test_a_round_that_fails_leaves_its_sequences_as_they_were() -> None:
    executor = Drafting()
    batcher = Batcher(executor)
    running = batcher.add(request([1, 2, 3], "111", "100", 20))
    while not running.steps:
        batcher.step()
    calls = executor.logits
    for before in range(4):  # the first, second and third draft fail, and the verification
        left = [before]

        def failing(rows: Rows, left: list[int] = left) -> Tensor:
            left[0] -= 1
            if left[0] < 0:
                raise PoolFullError("on purpose")
            return calls(rows)

        executor.logits = failing  # type: ignore[method-assign]
        length = running.sequence.length
        speculator = batcher.speculators.get(running.request.mask, running.request.draft, 1)
        with pytest.raises(PoolFullError):
            speculator.advance([Writer(running.sequence, running.known[-1], running.sampler, running.room)])
        assert running.sequence.length == length
        assert running.sequence.drafted is None
    executor.logits = calls  # type: ignore[method-assign]
    batcher.run()
    assert running.result().tokens == expected(running.request)


@pytest.mark.usefixtures("always")
def test_an_end_within_a_round_ends_the_answer_there() -> None:
    asked = request([3, 1], "111", "100", 20)
    words = expected(asked)
    for at in range(1, 12):
        batcher = Batcher(Drafting(), eos=frozenset({words[at]}))
        running = batcher.add(asked)
        batcher.run()
        assert running.result().tokens == words[: words.index(words[at]) + 1]
        assert running.result().finish == "eos"
        # What the tree keeps is what the whole model left there, of tokens of the text alone.
        again = batcher.add(replace(asked, prompt=(3, 1, *words[:19]), max_new_tokens=4))
        batcher.run()
        assert again.result().tokens[0] == words[19]


def test_what_drafts_came_to_is_counted_beyond_the_speculators_that_are_kept() -> None:
    speculators = Speculators(FakeExecutor(), most=2)
    for requests in (1, 2, 3, 1, 1, 2):
        speculators.get(halves("111"), halves("100"), requests).draft_length.record_round(2, [1], 1.0, 1.0)
        assert len(speculators.latest) <= 2
    assert speculators.counts() == {"rounds": 6, "drafted": 12, "judged": 12, "accepted": 6}
    kept = speculators.get(halves("111"), halves("100"), 1)
    assert kept.draft_length.rounds == 2
    assert speculators.get(halves("111"), halves("110"), 1) is not kept


def test_drafts_that_are_never_right_cost_three_percent_on_a_clock_that_counts_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block for a row takes 1, a further row 0.05 of that, a call 0.1; at first all takes twice as long."""
    clock = [0.0]
    monkeypatch.setattr(speculative, "perf_counter", lambda: clock[0])

    class Clocked(FakeExecutor):
        def logits(self, rows: Rows) -> Tensor:
            work = 0.1 + (rows.masks > 0).sum() * (1 + 0.05 * (len(rows.tokens) - 1))
            clock[0] += work * (2 if clock[0] < 30 else 1)
            out = torch.zeros(len(rows.wanted), self.vocab_size)
            words = rows.tokens[rows.wanted] + 1 + (rows.masks.min() == 0)
            return out.scatter_(1, torch.from_numpy(words % 50).long()[:, None], 1)

    seconds = {}
    for draft in (None, "110", "100"):
        batcher, clock[0] = Batcher(Clocked()), 0.0
        running = batcher.add(request([1], "111", draft, 256))
        batcher.run()
        assert running.result().tokens == [(2 + at) % 50 for at in range(256)]
        seconds[draft] = clock[0]
        assert (batcher.speculators.counts()["rounds"] > 2) == (draft is not None)
    assert max(seconds.values()) <= 1.03 * seconds[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LayerSkipModel:
    folder: Path = save_tiny(tmp_path_factory.mktemp("drafted") / "llama", "llama", 4)
    return LayerSkipModel.from_pretrained(folder, dtype="fp32", executor="transformers")


@pytest.mark.usefixtures("always")
def test_a_model_takes_a_draft_as_a_mask_or_as_found(model: LayerSkipModel) -> None:
    mask = np.array([True, False, True, True])
    alone = model.generate("Once upon", max_new_tokens=16, ignore_eos=True)
    for draft in (mask, Draft(mask, 0.5, 0.8, 1.1, 2, 40)):
        found = model.generate("Once upon", max_new_tokens=16, ignore_eos=True, draft=draft)
        assert found.tokens == alone.tokens
        assert found.text == alone.text
        steps = list(model.stream("Once upon", max_new_tokens=16, ignore_eos=True, draft=draft))
        assert [step.token for step in steps] == alone.tokens
        assert "".join(step.text for step in steps) == alone.text
    figures = model.drafting()
    assert figures["rounds"] > 4
    assert figures["acceptance"] == figures["accepted"] / model.batcher.speculators.counts()["judged"]
    stop = alone.text[5:7]
    cut = model.generate("Once upon", max_new_tokens=16, ignore_eos=True, draft=mask, stop=stop)
    assert cut.finish == "stop"
    assert cut.text == alone.text[: alone.text.index(stop)]


def test_a_draft_of_all_or_nothing_is_none(model: LayerSkipModel) -> None:
    whole = np.ones(4, dtype=bool)
    before = model.drafting()["rounds"]
    model.generate("Once upon", max_new_tokens=8, draft=whole)
    model.generate(
        "Once upon", np.array([True, True, False, False]), max_new_tokens=8, draft=np.array([False, False, True, True])
    )
    assert model.drafting()["rounds"] == before
    with pytest.raises(RequestError, match="a mask is bool"):
        model.generate("Once upon", draft=np.ones(3, dtype=bool))
