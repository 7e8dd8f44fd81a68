"""Requests beside each other, pages kept for later ones, too little memory: on an executor that checks its reads."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from fake_executor import FakeExecutor, check_references, next_word
from hypothesis import given, settings
from hypothesis import strategies as st

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import read_mask
from layercoop_fast.runtime.batching import Batcher, Waiting
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.requests import Request, Running


def request(prompt: list[int], mask: str = "111", n_new: int = 5, **more: object) -> Request:
    halves = read_mask(np.array([bit == "1" for bit in mask]), len(mask))
    return Request(tuple(prompt), halves, n_new, **more)


def expected(asked: Request) -> list[int]:
    tokens = list(asked.prompt)
    for _ in range(asked.max_new_tokens):
        tokens.append(next_word(asked.mask, tokens))
    return tokens[len(asked.prompt) :]


def tree_pages(batcher: Batcher) -> int:
    return len(
        {(batcher.executor.pool.kinds[layer], page) for entry in batcher.tree._entries
         for layer, page in zip(entry.layers, entry.pages.tolist(), strict=True)}
    )  # fmt: skip


def answers(batcher: Batcher, asked: list[Request]) -> list[list[int]]:
    runnings = [batcher.add(each) for each in asked]
    batcher.run()
    return [running.result().tokens for running in runnings]


MASKS = st.sampled_from(["111", "110", "101", "011", "100"])
REQUESTS = st.lists(
    st.builds(
        lambda length, flip, mask, n_new: request([0] * (length - 1) + [flip], mask, n_new),
        st.integers(1, 60), st.integers(0, 1), MASKS, st.integers(1, 24),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(REQUESTS, min_size=1, max_size=3), pages=st.sampled_from([18, 25, 60, 1000]))
def test_answers_do_not_depend_on_company_or_memory(rounds: list[list[Request]], pages: int) -> None:
    """A request of 84 tokens takes 18 pages: with as many, the others wait or give way, and the tree is emptied."""
    batcher = Batcher(FakeExecutor(pages=pages), prefill_tokens=40)
    for asked in rounds:
        assert answers(batcher, asked) == [expected(each) for each in asked]
        assert batcher.executor.pool.used == tree_pages(batcher) <= pages
    batcher.tree.clear()
    assert batcher.executor.pool.used == len(batcher.tree) == 0


def test_a_second_request_reads_no_whole_page_again() -> None:
    batcher = Batcher(FakeExecutor())
    prompt = list(range(40))
    answers(batcher, [request(prompt)])
    computed = batcher.executor.computed
    again = batcher.add(request([*prompt[:39], 7]))
    batcher.run()
    assert again.result().reused_tokens == 32
    assert batcher.executor.computed - computed == 3 * (8 + 4)
    # A mask that leaves out only the last block has what it needs in the pages of the whole model.
    shorter = batcher.add(request(prompt, "110"))
    batcher.run()
    assert shorter.result().reused_tokens == 32
    # One that leaves out the first has not, and is computed; what is kept grows by its own two pages a block.
    pages = tree_pages(batcher)
    other = batcher.add(request(prompt, "011"))
    batcher.run()
    assert other.result().reused_tokens == 0
    assert tree_pages(batcher) == pages + 2 * 2


def test_masks_that_begin_alike_keep_one_copy_even_when_they_come_one_after_the_other() -> None:
    batcher = Batcher(FakeExecutor(n_layers=4))
    prompt = list(range(33))
    answers(batcher, [request(prompt, "1111", 1)])
    answers(batcher, [request(prompt, "1011", 1)])
    assert tree_pages(batcher) == 2 * 4 + 2 * 2


def test_pages_not_used_for_longest_go_first() -> None:
    batcher = Batcher(FakeExecutor(n_layers=1, pages=10))
    old, new, used = [1] * 33, [2] * 33, [3] * 33
    for prompt in (used, old, new, used):
        answers(batcher, [request(prompt, "1", 1)])
    assert tree_pages(batcher) == 6
    answers(batcher, [request([4] * 80, "1", 1)])  # six pages, where four are free
    reused = []
    for prompt in (used, new, old):
        running = batcher.add(request(prompt, "1", 1))
        batcher.run()
        reused.append(running.result().reused_tokens)
    assert reused == [32, 32, 0]


def test_a_long_prompt_stalls_nobody() -> None:
    batcher = Batcher(FakeExecutor(), prefill_tokens=64)
    short = batcher.add(request([1], n_new=20))
    batcher.step()
    long = batcher.add(request([2] * 640, n_new=1))
    steps = 0
    while long.finish is None:
        assert short in batcher.step() or short.finish
        steps += 1
    assert steps == 10
    assert len(short.steps) == 11


def test_requests_of_one_prompt_read_it_together() -> None:
    batcher = Batcher(FakeExecutor(n_layers=4))
    asked = [request([5] * 200, mask, 1) for mask in ("1111", "1110", "1101", "1100")]
    assert answers(batcher, asked) == [expected(each) for each in asked]
    assert batcher.executor.computed == 200 * (4 + 0 + 1 + 0)


def test_the_youngest_gives_way() -> None:
    batcher = Batcher(FakeExecutor(n_layers=1, pages=4))
    first, second = batcher.add(request([1] * 15, "1", 30)), batcher.add(request([2] * 15, "1", 30))
    waited = False
    while first.finish is None:
        batcher.step()
        waited = waited or (bool(second.steps) and second in batcher.waiting)
        check_references(batcher.executor, [one.sequence for one in batcher.running], tree_pages(batcher))
    assert waited
    batcher.run()
    assert [first.result().tokens, second.result().tokens] == [expected(first.request), expected(second.request)]


def test_cancelled_requests_leave_nothing() -> None:
    batcher = Batcher(FakeExecutor(), most=1)
    running, waiting = batcher.add(request([1] * 20)), batcher.add(request([1]))
    batcher.step()
    for each in (waiting, running):
        batcher.cancel(each)
    assert not batcher.running
    assert not batcher.waiting
    batcher.tree.clear()
    assert batcher.executor.pool.used == 0


def test_eos_ends_an_answer_unless_it_is_ignored() -> None:
    tokens = expected(request([1, 2, 3], n_new=6))
    batcher = Batcher(FakeExecutor(), eos=frozenset([tokens[2]]))
    ended, going_on = (batcher.add(request([1, 2, 3], n_new=6, ignore_eos=ignore)) for ignore in (False, True))
    batcher.run()
    assert (ended.result().tokens, ended.result().finish) == (tokens[: tokens.index(tokens[2]) + 1], "eos")
    assert (going_on.result().tokens, going_on.result().finish) == (tokens, "length")


def test_sampled_answers_do_not_depend_on_company() -> None:
    def sampled(beside: int) -> list[Running]:
        batcher = Batcher(FakeExecutor())
        hot = Sampling(temperature=5.0, seed=3)
        runnings = [batcher.add(request([index], n_new=8, sampling=hot, index=index)) for index in range(1 + beside)]
        batcher.run()
        return runnings

    alone, among = sampled(0), sampled(3)
    assert alone[0].result().tokens == among[0].result().tokens
    assert len({tuple(running.result().tokens) for running in among}) == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request([]), "the prompt is empty"),
        (request([50]), "numbers from 0 to 49"),
        (request([1], n_new=0), "max_new_tokens must be 1 or more"),
        (request([1] * 60, n_new=5), "60 tokens and 5 new ones are 65, and the model has positions for 64"),
        (request([1] * 30, n_new=30), "take 120 bytes, and the budget is 100"),
        (request([1], "11"), r"bool\[3\]"),
    ],
)
def test_what_cannot_be_asked(asked: Request, message: str) -> None:
    batcher = Batcher(FakeExecutor(pages=10, max_tokens=64))
    with pytest.raises(RequestError, match=message):
        batcher.add(asked)
    assert not batcher.waiting


def test_a_draw_from_a_pool_without_a_tree_fails_cleanly() -> None:
    """Two sequences beyond the budget, outside any batcher: the second is told, the first goes on."""
    executor = FakeExecutor(n_layers=1, pages=1)
    batcher = Batcher(executor)
    answers(batcher, [request([1] * 10, "1", 3)])
    sequence = executor.sequence()
    executor.run([Chunk(sequence, [1])])
    assert executor.pool.used == 1


def test_the_first_of_many_that_wait_is_found_without_a_look_at_the_others() -> None:
    batcher = Batcher(FakeExecutor())
    runnings = [batcher.prepare(request([number % 50], n_new=2)) for number in range(1000)]
    of_one_call = [batcher.prepare(request([1], call=runnings[0].request.call)) for _ in range(1000)]
    waiting = Waiting()
    for one in [*runnings, *of_one_call]:
        waiting.append(one)
    looked_at = 0

    class Counting(Counter[object]):
        def __getitem__(self, call: object) -> int:
            nonlocal looked_at
            looked_at += 1
            return super().__getitem__(call)

    assert waiting.first(Counting()) is runnings[0]
    assert looked_at == 1
    looked_at = 0
    assert waiting.first(Counting({runnings[0].request.call: 1})) is runnings[1]
    assert looked_at <= 6


def test_requests_that_many_threads_start_are_all_computed() -> None:
    """Threads add requests while another one computes; what holds those that wait is touched by turns alone."""
    batcher = Batcher(FakeExecutor(), most=4)

    class Watched(Waiting):
        def append(self, one: Running) -> None:
            assert batcher._turns._worker == threading.get_ident()
            super().append(one)

    batcher.waiting = Watched()
    shared = object()
    started: list[list[Running]] = [[] for _ in range(4)]

    def start(mine: list[Running]) -> None:
        for number in range(100):
            call = shared if number % 2 else object()
            mine.append(batcher.add(request([number % 50], n_new=1, call=call)))

    threads = [threading.Thread(target=start, args=(mine,)) for mine in started]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not batcher.idle:
        batcher.step()
    assert [len(mine) for mine in started] == [100] * 4
    assert all(one.result().tokens == expected(one.request) for mine in started for one in mine)
    assert len(batcher.waiting) == 0


def test_nobody_gives_up_pages_for_a_request_that_does_not_fit_all_the_same() -> None:
    """Two of one call run; a request of another call needs more than one of them can free: both run on."""
    batcher = Batcher(FakeExecutor(n_layers=1, pages=8))
    both = [batcher.prepare(request([number] * 40, "1", 8, call="both")) for number in (1, 2)]
    batcher.start(both)
    batcher.step()
    large = batcher.add(request([3] * 100, "1", 8))
    while not (both[0].ended or both[1].ended):
        assert batcher.running == both
        batcher.step()
    batcher.run()
    assert [one.result().tokens for one in (*both, large)] == [expected(one.request) for one in (*both, large)]
    assert all(one.result().reused_tokens == 0 for one in both)
