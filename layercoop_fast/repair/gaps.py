"""The gaps of a mask, contiguous removed units, and the kept unit that is refitted to replace each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.masks.types import Masks


@dataclass(frozen=True)
class Gap:
    """Removed units, and the kept unit that is refitted to replace them.

    Attributes:
        unit: the kept unit that is refitted.
        behind: the output of `unit` is fitted to the full model's stream before unit `behind`, which is the next kept
            unit, or the number of units where none follows.
        removed: the removed units that are replaced: those between `unit` and `behind`, and for the first kept unit
            also those before it.
    """

    unit: int
    behind: int
    removed: tuple[int, ...]


def find_gaps(units: Masks) -> list[Gap]:
    """The gaps of a mask over units (`bool[U]`, at least one True), from shallow to deep.

    The kept unit before a gap is refitted; a gap that starts at unit 0 has none, and belongs to the first kept unit.
    """
    kept = [int(unit) for unit in np.flatnonzero(units)]
    gaps = []
    for number, unit in enumerate(kept):
        behind = kept[number + 1] if number + 1 < len(kept) else len(units)
        removed = (*range(unit), *range(unit + 1, behind)) if number == 0 else tuple(range(unit + 1, behind))
        if removed:
            gaps.append(Gap(unit, behind, removed))
    return gaps
