"""Building the plan of many masks, against counting the same prefixes with a Python set."""

from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast import _C

PLAYERS = 64
pytestmark = pytest.mark.benchmark(group="plan of masks x 64 players")


@pytest.fixture(scope="module")
def masks(full: bool) -> np.ndarray:
    return np.random.default_rng(0).random((100_000 if full else 10_000, PLAYERS)) < 0.5


def test_ours(clock, masks: np.ndarray) -> None:
    packed = _C.pack_masks(masks)
    clock("ours", lambda: _C.Plan(packed, PLAYERS, len(masks)), rounds=15)


def test_python_set(clock, masks: np.ndarray) -> None:
    """The least a user would write: the distinct kept prefixes, without any schedule. On a hundredth of the masks."""
    some = masks[::100]

    def count() -> int:
        return len({tuple(np.flatnonzero(mask)[:end]) for mask in some for end in range(1, int(mask.sum()) + 1)})

    clock("python set", count, scale=len(masks) / len(some))
