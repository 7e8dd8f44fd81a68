"""The best chain of measured masks against every chain there is."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from layercoop_fast.search.chains import best_chain
from layercoop_fast.search.measurements import MeasuredMask

N = 6


def entry(removed: frozenset[int], loss: float) -> MeasuredMask:
    return MeasuredMask(~np.isin(np.arange(N), list(removed)), loss, np.array([loss]), True)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_longest_and_of_these_the_cheapest(seed: int) -> None:
    """Few masks a size, so that sizes have to be left out, and losses that say otherwise than lengths."""
    rng = np.random.default_rng(seed)
    sizes = []
    for size in range(1, 5):
        sets = {frozenset(rng.choice(N, size, replace=False).tolist()) for _ in range(rng.integers(1, 5))}
        sizes.append([(removed, float(rng.gamma(1))) for removed in sorted(sets, key=sorted)])
    chains = []
    for chosen in product(*([None, *of_size] for of_size in sizes[:-1]), sizes[-1]):
        chain = [one for one in chosen if one is not None]
        if all(small < large for (small, _), (large, _) in pairwise(chain)):
            chains.append((-len(chain), sum(loss for _, loss in chain), [sorted(removed) for removed, _ in chain]))
    found = best_chain([[entry(*one) for one in of_size] for of_size in sizes])
    assert [np.flatnonzero(~one.mask).tolist() for one in found] == min(chains)[2]
