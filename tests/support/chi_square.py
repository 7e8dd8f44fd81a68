"""Whether counts look drawn from a distribution (Pearson's test)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NORMAL = 3.29  # a chance of 5e-4 to be told no where the answer is yes


def looks_drawn_from(expected: NDArray[np.float64], counts: NDArray[np.int64]) -> bool:
    """Whether counts [V] look drawn from probabilities [V]; cells expected to be rare are counted as one."""
    total = counts.sum()
    if counts[expected == 0].any():
        return False
    wanted = total * expected / expected.sum()
    rare = wanted < 5
    cells = np.append(wanted[~rare], wanted[rare].sum())
    found = np.append(counts[~rare], counts[rare].sum())
    used = cells > 0
    statistic = ((found[used] - cells[used]) ** 2 / cells[used]).sum()
    degrees = max(1, int(used.sum()) - 1)
    # The quantile, by Wilson and Hilferty's cube root.
    limit = degrees * (1 - 2 / (9 * degrees) + _NORMAL * (2 / (9 * degrees)) ** 0.5) ** 3
    return bool(statistic < limit)
