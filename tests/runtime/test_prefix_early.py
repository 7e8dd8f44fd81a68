"""A prompt is there for others as soon as it is read, not only when its answer has ended."""

from __future__ import annotations

import numpy as np
from fake_executor import FakeExecutor

from layercoop_fast.masks.halves import read_mask
from layercoop_fast.runtime.batching import Batcher
from layercoop_fast.runtime.requests import Request
from layercoop_fast.runtime.speculative import Speculators


def test_a_request_takes_the_prompt_over_from_one_that_still_answers() -> None:
    batcher = Batcher(FakeExecutor(pages=1000))
    mask = read_mask(np.ones(3, dtype=bool), 3)
    prompt = tuple(range(1, 2)) * 40
    first = batcher.add(Request(prompt, mask, 20))
    batcher.step()
    assert len(first.steps) == 1
    second = batcher.add(Request(prompt, mask, 2))
    batcher.step()
    assert (second.reused_tokens, first.finish) == (32, None)


def test_of_whole_pages_the_last_is_computed_for_its_logits() -> None:
    batcher = Batcher(FakeExecutor(pages=1000))
    mask = read_mask(np.ones(3, dtype=bool), 3)
    prompt = [1] * 32
    batcher.add(Request(tuple(prompt), mask, 2))
    batcher.run()
    assert batcher.tree is not None
    assert batcher.tree.match(batcher.executor.sequence(mask), prompt) == 16


def test_under_pressure_the_end_of_a_text_goes_before_its_beginning() -> None:
    batcher = Batcher(FakeExecutor(pages=1000))
    mask = read_mask(np.ones(3, dtype=bool), 3)
    prompt = [1] * 48
    batcher.add(Request(tuple(prompt), mask, 1))
    batcher.run()
    assert batcher.tree is not None
    assert batcher.tree.evict(1)
    assert batcher.tree.match(batcher.executor.sequence(mask), [*prompt, 1]) == 32


def test_masks_have_speculators_of_their_own() -> None:
    latest = Speculators(FakeExecutor(pages=10))
    whole, other, draft = (np.array(mask, dtype=np.uint8) for mask in ([3, 3, 3], [3, 3, 0], [3, 0, 0]))
    assert latest.get(whole, draft, 1) is latest.get(whole, draft, 1)
    assert latest.get(whole, draft, 1) is not latest.get(other, draft, 1)
