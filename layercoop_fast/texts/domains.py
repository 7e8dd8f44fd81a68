"""Which of several texts each window is of, how much each text counts, and what a loss over all of them is.

With l a loss of each window, d a text, W_d its windows and w_d its weight:

    mean     Σ_d w_d · mean(l over W_d) / Σ_d w_d
    worst    the largest over d of mean(l over W_d), l being what a window's loss rose by against the full model's

Windows of several texts take turns (the first of each text, the second of each, ...), so that the first few of them
hold every text. Where some windows hold only some of the texts, those count as if there were no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

OBJECTIVES = ("mean", "worst")


@dataclass(frozen=True, eq=False)
class Domains:
    """The texts of W windows.

    Attributes:
        of_window: int64 [W], the text each window is of, from 0.
        weights: float64 [D], how much each text counts in the mean; they need not sum to 1.
        names: a SPEC for each text; () where it is not known, since a fingerprint does not hold it.
    """

    of_window: Ints
    weights: Floats
    names: tuple[str, ...] = ()

    def as_json(self) -> dict[str, list[Any]]:
        """What belongs into a fingerprint; `of` reads it."""
        return {"domains": self.of_window.tolist(), "weights": self.weights.tolist()}

    @classmethod
    def of(cls, fingerprint: object) -> Domains | None:
        """The texts in a game's `calibration` fingerprint; None where that is one text's, or of items with options."""
        if not isinstance(fingerprint, Mapping) or "domains" not in fingerprint:
            return None
        return cls(np.array(fingerprint["domains"], np.int64), np.array(fingerprint["weights"], np.float64))

    def fits(self, n_windows: int) -> bool:
        """Whether every window has one of the texts, and every text a weight that counts."""
        n_texts, weights = len(self.weights), self.weights
        return bool(
            self.of_window.shape == (n_windows,)
            and weights.shape == (n_texts,)
            and ((self.of_window >= 0) & (self.of_window < n_texts)).all()
            and ((weights > 0) & (weights < 1e100)).all()
        )

    def part(self, first: int, last: int) -> Domains:
        """The same for windows `first` to `last` − 1 alone."""
        return Domains(self.of_window[first:last], self.weights, self.names)

    @cached_property
    def present(self) -> list[int]:
        """The texts that have a window."""
        return [int(domain) for domain in np.unique(self.of_window)]

    @cached_property
    def shares(self) -> Floats:
        """What each window counts in the mean, float64 [W], summing to 1."""
        counts = np.bincount(self.of_window, minlength=len(self.weights))
        each = (self.weights / np.maximum(counts, 1))[self.of_window]
        return np.asarray(each / self.weights[self.present].sum())

    def by_domain(self, values: Floats) -> Floats:
        """Means over the windows of each text that has some: [..., W] → [..., D]."""
        # Contiguous, so that a row is added up in one way however many rows there are.
        columns = [np.ascontiguousarray(values[..., self.of_window == domain]) for domain in self.present]
        return np.stack([column.mean(axis=-1) for column in columns], axis=-1)

    def mean(self, values: Floats) -> Floats:
        """The weighted mean over the texts: [..., W] → [...]."""
        weights = self.weights[self.present]
        return np.asarray((self.by_domain(values) * (weights / weights.sum())).sum(axis=-1))

    def weighted(self, values: Floats) -> Floats:
        """Values [..., W] scaled so that their plain mean over the windows is the weighted one."""
        return np.asarray(values * (self.shares * len(self.shares)))

    def loss(self, rises: Floats, objective: str) -> Floats:
        """What windows' losses rose by, [..., W], as one number: [...]."""
        return self.mean(rises) if objective == "mean" else np.asarray(self.by_domain(rises).max(axis=-1))

    def stderr(self, values: Floats) -> Floats:
        """Standard error of the mean for more text like each: [..., W] → [...]; NaN with one window of a text."""
        weights = self.weights[self.present] / self.weights[self.present].sum()
        variance = np.zeros(values.shape[:-1])
        for domain, weight in zip(self.present, weights, strict=True):
            column = values[..., self.of_window == domain]
            count = column.shape[-1]
            with np.errstate(invalid="ignore"):
                variance += weight**2 * column.var(axis=-1, ddof=1) / count if count > 1 else np.nan
        return np.asarray(np.sqrt(variance))


def first_windows(share: float, n_windows: int, domains: Domains | None) -> int:
    """How many first windows come nearest to a share of all, with as many of each text, 1 at least."""
    turn = 1 if domains is None else len(domains.weights)
    return min(n_windows, max(1, round(share * n_windows / turn)) * turn)


def one_domain(n_windows: int) -> Domains:
    """Windows that are all of one text."""
    return Domains(np.zeros(n_windows, np.int64), np.ones(1))
