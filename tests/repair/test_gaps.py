from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.repair.gaps import Gap, find_gaps


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("1111", []),
        ("1001", [Gap(0, 3, (1, 2))]),
        ("1100", [Gap(1, 4, (2, 3))]),
        ("1010", [Gap(0, 2, (1,)), Gap(2, 4, (3,))]),
        ("0110", [Gap(1, 2, (0,)), Gap(2, 4, (3,))]),  # a run from the start is made up for by the first kept unit
        ("0011", [Gap(2, 3, (0, 1))]),
        ("0100", [Gap(1, 4, (0, 2, 3))]),
    ],
)
def test_each_removed_unit_is_made_up_for_once(kept: str, expected: list[Gap]) -> None:
    gaps = find_gaps(np.array([bit == "1" for bit in kept]))
    assert gaps == expected
    assert sorted(unit for gap in gaps for unit in gap.removed) == [i for i, bit in enumerate(kept) if bit == "0"]
