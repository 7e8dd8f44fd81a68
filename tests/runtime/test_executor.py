"""Pages, sharing and copies on write, on an executor that checks every key it reads."""

from __future__ import annotations

import numpy as np
import pytest
from fake_executor import PAGE_BYTES, FakeExecutor, check_references, next_word
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.pages import PagePool, PoolFullError
from layercoop_fast.runtime.sequences import TokenSequence


def bits(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


def test_masks_that_begin_alike_share_work_and_pages() -> None:
    executor = FakeExecutor(n_layers=4)
    masks = ["1111", "1101", "1101", "0111"]
    sequences = [executor.sequence(bits(mask)) for mask in masks]
    words = executor.best([Chunk(sequence, list(range(20))) for sequence in sequences]).tolist()
    assert words == [next_word(sequence.mask, list(range(20))) for sequence in sequences]
    # Blocks of 1111; block 3 alone of 1101, of which the second computes nothing; three of 0111. Two pages each.
    assert executor.computed == 20 * (4 + 1 + 0 + 3)
    assert executor.pool.used == 2 * (4 + 1 + 0 + 3)
    check_references(executor, sequences)
    # The two equal ones part with their next token: both may write into what was one page.
    executor.run([Chunk(sequence, [number]) for number, sequence in enumerate(sequences)])
    check_references(executor, sequences)
    assert executor.pool.used == (4 + 1 + 0 + 3) + (4 + 3 + 3 + 3)
    for sequence in sequences:
        sequence.release()
    assert executor.pool.used == executor.pool.used_bytes == 0


def test_equal_sequences_go_on_together_without_copies() -> None:
    executor = FakeExecutor()
    a, b = executor.sequence(), executor.sequence()
    for token in range(40):
        executor.run([Chunk(a, [token]), Chunk(b, [token])])
    assert executor.pool.used == 3 * 3
    assert executor.computed == 3 * 40
    assert executor.copies == 0
    check_references(executor, [a, b])


def test_a_call_that_does_not_fit_changes_nothing() -> None:
    executor = FakeExecutor(n_layers=2, pages=4)
    a, b = executor.sequence(), executor.sequence()
    executor.run([Chunk(a, [1] * 16), Chunk(b, [2] * 15)])
    with pytest.raises(PoolFullError, match="do not fit into the budget of 40 bytes"):
        executor.run([Chunk(b, [3]), Chunk(a, [3])])
    assert (a.length, b.length) == (16, 15)
    executor.fails = True
    with pytest.raises(MemoryError):
        executor.run([Chunk(b, [3])])
    executor.fails = False
    check_references(executor, [a, b])
    b.release()
    executor.run([Chunk(a, [3])])
    check_references(executor, [a, b])


@pytest.mark.parametrize(
    ("tokens", "wanted", "message"),
    [
        ([], 0, "one token at least"),
        ([1], 2, "no 2 rows of logits"),
        ([50], 1, "numbers from 0 to 49"),
        ([-1], 1, "numbers from 0 to 49"),
        ([1] * 33, 1, "positions for 32 tokens, not for 33"),
    ],
)
def test_bad_chunks(tokens: list[int], wanted: int, message: str) -> None:
    executor = FakeExecutor(max_tokens=32)
    with pytest.raises(RequestError, match=message):
        executor.run([Chunk(executor.sequence(), tokens, wanted)])
    assert executor.pool.used == 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(4, bool), r"bool\[3\].*got bool\[4\]"),
        (np.zeros(3, bool), "removes every block"),
        ([1, 0, 1], "got int64"),
        (np.array([1, 5, 1], np.uint8), "got uint8"),
    ],
)
def test_bad_masks(mask: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FakeExecutor().sequence(mask)


def test_a_sequence_cannot_run_twice_in_a_call_or_be_cut_longer() -> None:
    executor = FakeExecutor()
    sequence = executor.sequence()
    with pytest.raises(RequestError, match="another sequence"):
        executor.run([Chunk(sequence, [1]), Chunk(sequence, [1])])
    with pytest.raises(RequestError, match="cannot be cut to 3"):
        sequence.truncate(3)


def test_pages_given_back_twice_are_found() -> None:
    pool = PagePool([PAGE_BYTES, 0], 2 * PAGE_BYTES)
    page = pool.take(0)
    pool.drop(0, [page])
    with pytest.raises(RunError, match="given back twice"):
        pool.drop(0, [page])
    with pytest.raises(RunError, match="shared after"):
        pool.share(0, [page])
    with pytest.raises(RunError, match="nobody reserved"):
        pool.take(1)  # a block that keeps no pages


class Sequences(RuleBasedStateMachine):
    """Any order of operations keeps every key where it belongs (the executor checks that) and counts every page."""

    def __init__(self) -> None:
        super().__init__()
        self.executor = FakeExecutor(n_layers=3, pages=60)
        self.sequences: list[TokenSequence] = []

    @precondition(lambda self: len(self.sequences) < 5)
    @rule(mask=st.sampled_from(["111", "110", "101", "011", "100", "111"]))
    def start(self, mask: str) -> None:
        self.sequences.append(self.executor.sequence(bits(mask)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def run_some(self, data: st.DataObject, tokens: list[int]) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.sequences), min_size=1, unique_by=id))
        try:
            self.executor.run([Chunk(sequence, tokens) for sequence in chosen])
        except PoolFullError:
            self.sequences.pop().release()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        sequence.truncate(data.draw(st.integers(0, sequence.length)))

    @precondition(lambda self: self.sequences)
    @rule()
    def end(self) -> None:
        self.sequences.pop(0).release()

    @invariant()
    def counted(self) -> None:
        check_references(self.executor, self.sequences)

    def teardown(self) -> None:
        for sequence in self.sequences:
            sequence.release()
        assert self.executor.pool.used == 0


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
