"""What a failed call gives back, and what a mask may keep of a block of which a half is held."""

from __future__ import annotations

import numpy as np
import pytest
from fake_executor import FakeExecutor

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import read_mask
from layercoop_fast.runtime.executor import Chunk


def test_a_call_that_fails_gives_its_pages_back() -> None:
    executor = FakeExecutor(n_layers=2, pages=8)
    sequence = executor.sequence()
    executor.run([Chunk(sequence, [1] * 16)])
    before = executor.pool.used
    executor.fails = True
    with pytest.raises(MemoryError):
        executor.run([Chunk(sequence, [2])])
    assert executor.pool.used == before


def test_a_half_that_is_not_held_cannot_be_kept() -> None:
    held = np.array([3, 2], dtype=np.uint8)
    assert read_mask(np.array([3, 2], dtype=np.uint8), 2, held).tolist() == [3, 2]
    with pytest.raises(RequestError, match="keeps block 1, whose weights were left out"):
        read_mask(np.array([3, 1], dtype=np.uint8), 2, held)
