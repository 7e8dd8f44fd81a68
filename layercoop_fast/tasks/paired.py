"""Whether two masks score differently on the same documents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layercoop_fast.masks.types import Floats

_DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """A mask's scores less another's, over the same documents.

    Attributes:
        difference: the mean.
        stderr: its standard error over documents; None for one document.
        p: two-sided, of no difference; None where all differences are 0.
        test: "mcnemar" or "sign-flip".
    """

    difference: float
    stderr: float | None
    p: float | None
    test: str


def paired(scores: Floats, others: Floats, *, seed: int = 0) -> Paired:
    """Compare scores of documents, float64 [D], with others of the same documents.

    Scores of 0 and 1: McNemar's test in its exact form (McNemar 1947; Dietterich 1998): of the documents that one mask
    gets right and the other wrong, each is as likely to be of one kind as of the other. Other scores: a permutation
    test that flips the signs of differences (Fisher 1935), with 10,000 draws of `seed`.
    """
    difference = np.asarray(scores - others, np.float64)
    count = len(difference)
    stderr = float(difference.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    mean = float(difference.mean())
    if np.isin(scores, (0, 1)).all() and np.isin(others, (0, 1)).all():
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        return Paired(mean, stderr, mcnemar(won, lost), "mcnemar")
    return Paired(mean, stderr, sign_flip(difference, seed=seed), "sign-flip")


def mcnemar(won: int, lost: int) -> float | None:
    """Two-sided exact p of `won` documents against `lost` ones; None where both are 0."""
    count = won + lost
    if not count:
        return None
    fewer = min(won, lost)
    log_half = count * math.log(0.5)
    logs = [
        math.lgamma(count + 1) - math.lgamma(at + 1) - math.lgamma(count - at + 1) + log_half for at in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def sign_flip(difference: Floats, *, draws: int = _DRAWS, seed: int = 0) -> float | None:
    """Two-sided p of differences, float64 [D], that were symmetric about zero, by random signs; None where all are 0.

    No smaller than 1 / (draws + 1). Source: Fisher, The Design of Experiments (1935), chapter 3.
    """
    difference = difference[difference != 0]
    if not len(difference):
        return None
    generator = np.random.default_rng(seed)
    observed = abs(float(difference.sum()))
    extreme, left = 0, draws
    step = max(1, 2**22 // len(difference))
    while left:
        some = min(step, left)
        signs = generator.integers(0, 2, (some, len(difference)), dtype=np.int8) * 2.0 - 1.0
        # Sums of the same numbers in another order differ in their last bits.
        extreme += int((np.abs(signs @ difference) >= observed * (1 - 1e-12)).sum())
        left -= some
    return (extreme + 1) / (draws + 1)
