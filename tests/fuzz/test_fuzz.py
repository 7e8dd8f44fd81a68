"""Damaged inputs of every format end well: with values, or in one line, within 10 s and 1 GB."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run import NAMES, SHARES, Fuzzer

# Fixed seeds, so that a red run is the code's doing; `make fuzz` takes fresh ones.
FIRST, CASES = 1, 150
# Of what opens a model.
FEWEST = 25


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    with Fuzzer() as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs_end_in_values_or_in_one_line(name: str, fuzzer: Fuzzer) -> None:
    tally = fuzzer.run(name, FIRST, FIRST + max(FEWEST, round(SHARES.get(name, 1.0) * CASES)))
    assert tally.failures == [], tally.failures[0]["why"]
    # Or the damage, or the reading, would be of another kind than meant.
    assert tally.taken > 0
    assert tally.refused > 0
