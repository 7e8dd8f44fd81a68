"""The scores of a mask: what `masked/scoring.py` computes, and what stores and workers hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layercoop_fast.masks.types import Floats


@dataclass(frozen=True)
class Scores:
    """Mean NLL and mean KL to the full model of each window, nats a token: float64 [W] each, or [M, W] of M masks.

    `kl` is NaN throughout where it was not measured.
    """

    nll: Floats
    kl: Floats


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores (float64 [M, w] each) of the same masks on windows that follow each other, put together: [M, W]."""
    return Scores(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("nll", "kl")))


def same_bits(one: Scores, other: Scores) -> bool:
    """Whether scores (float64 [M, W] each) are equal bit for bit, NaN included."""
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in ("nll", "kl"))
