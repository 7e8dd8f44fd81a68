"""Which runs of units a mask removes, and before or behind which kept unit each of them can be made up for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.masks.types import Masks


@dataclass(frozen=True)
class Gap:
    """A kept unit whose output stands in for removed ones.

    Attributes:
        unit: the kept unit that is refitted.
        behind: the stream behind it is fitted to that of the full model before unit `behind`: the next kept unit, or
            the number of units where none follows.
        removed: the units that are made up for: those between `unit` and `behind`, and for the first kept unit those
            before it too.
    """

    unit: int
    behind: int
    removed: tuple[int, ...]


def find_gaps(units: Masks) -> list[Gap]:
    """The gaps of a mask over units (`bool[U]`, at least one True), shallow first.

    A removed run is made up for by the kept unit before it; one that starts at unit 0 has none, and the first kept unit
    makes up for it.
    """
    kept = [int(unit) for unit in np.flatnonzero(units)]
    gaps = []
    for number, unit in enumerate(kept):
        behind = kept[number + 1] if number + 1 < len(kept) else len(units)
        removed = (*range(unit), *range(unit + 1, behind)) if number == 0 else tuple(range(unit + 1, behind))
        if removed:
            gaps.append(Gap(unit, behind, removed))
    return gaps
