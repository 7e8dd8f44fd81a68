"""Tokens as likely as the k-th, where only so many of the likeliest are handed out as a choice asks for."""

from __future__ import annotations

import torch

from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.sampling import Sampler


def test_equals_of_the_kth_are_among_those_handed_out() -> None:
    logits = torch.full((60,), -9.0)
    logits[40] = 2.0
    logits[[3, 11, 25, 50]] = 1.0  # with top-k of 2 the cut keeps all four
    drawn = set()
    for seed in range(60):
        asked = Sampling(temperature=2.0, top_k=2, seed=seed)
        likeliest = logits.sort(descending=True, stable=True)
        near = asked.reach
        found = Sampler(asked).next_among(likeliest.values[:near], likeliest.indices[:near])
        assert found == Sampler(asked).next(logits)
        drawn.add(found)
    assert drawn == {3, 11, 25, 40, 50}
