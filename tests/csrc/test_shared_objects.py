"""Objects of the extension that several threads call at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from random_networks import random_networks
from threads import in_threads

from layercoop_fast import _C

N = 21  # 8 steps


def test_an_enumeration_works_for_one_thread_at_a_time() -> None:
    networks = random_networks(N, 4)
    alone, shared = (_C.Enumeration(networks, np.zeros(N + 1), pairs=True, top=5) for _ in range(2))
    alone.run(alone.n_tasks)

    def work() -> None:
        while shared.n_done < shared.n_tasks:
            shared.run(1)

    def read() -> None:
        while shared.n_done < shared.n_tasks:
            masks, scores = shared.best(N // 2)
            assert len(masks) == len(scores) <= 5
            assert shared.counts.sum() % 2**18 == 0  # whole steps

    in_threads(work, work, work, read)
    assert shared.n_done == shared.n_tasks == 8
    for name in ("counts", "sizes", "squares", "players", "pairs"):
        assert np.array_equal(getattr(shared, name), getattr(alone, name))
    for size in range(N + 1):
        for found, expected in zip(shared.best(size), alone.best(size), strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("change", ["blocks", "ends"])
def test_a_model_that_changes_between_calls_is_never_read_half(change: str) -> None:
    """Shapes are checked, and then it may be another thread's turn: a call sees what it was checked for, or fails."""
    vector = np.ones(32, dtype=np.float32)
    words = [_C.PackedMatrix("fp32", count, 32) for count in (40, 4000)]
    model = _C.DecodeModel(hidden=32, heads=1, kv_heads=1, width=4, inner=8, scale=1.0, activation="silu")
    model.set_rotaries([(np.ones((16, 2), dtype=np.float32), np.zeros((16, 2), dtype=np.float32))])
    model.set_ends(embedding=words[0], final_norm=(vector, 1e-5), head=words[0])
    row = np.zeros(1, dtype=np.int32)
    done = threading.Event()
    calls = [0]

    def run() -> None:
        while not done.is_set():
            layers = model.n_blocks
            try:
                model.run(
                    np.zeros(64, dtype=np.uint8), "fp32", tokens=row, positions=row, sequence=row, parent=row - 1,
                    fork=row, masks=np.zeros((1, layers), dtype=np.uint8),
                    tables=np.zeros((1, layers, 1), dtype=np.int32), wanted=row,
                    logits=np.zeros((1, 40), dtype=np.float32),
                )  # fmt: skip
                calls[0] += 1
            except (ValueError, RuntimeError):  # of another shape, or changed meanwhile
                pass

    def alter() -> None:
        try:
            for number in range(300):
                if change == "blocks":
                    model.add_block()
                else:
                    head = words[(number + 1) % 2]
                    model.set_ends(embedding=words[0], final_norm=(vector, 1e-5), head=head)
        finally:
            done.set()

    in_threads(run, run, alter)
    assert model.n_blocks == (300 if change == "blocks" else 0)
