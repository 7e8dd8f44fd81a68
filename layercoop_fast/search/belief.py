"""What a search expects of masks it has not measured, kept honest by how its last expectations turned out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.measurements import Entry, Measurements
from layercoop_fast.search.target import Target
from layercoop_fast.surrogate.expansion import Expansion

# How strong the parts of the surrogate are is chosen anew when the masks have grown by this factor.
_REFIT = 1.2
# Predictions that standard deviations are checked against, and the most that one of them may count.
_RECENT, _MOST_SURPRISING = 24, 16.0


class Belief:
    """The surrogate of everything in a ledger, fitted anew whenever something was added.

    Args:
        ledger: what is measured.
        target: what is wanted; losses up to that of the best mask that meets it are fitted with full trust.
    """

    def __init__(self, ledger: Measurements, target: Target) -> None:
        self.ledger, self.target = ledger, target
        self._fit: Expansion | None = None
        self._fitted, self._chosen = -1, 0
        self._surprises: list[float] = []
        # Removed players, expected loss, its standard deviation and the measured loss of masks asked for.
        self.forecasts: list[tuple[int, float, float, float]] = []

    @property
    def fit(self) -> Expansion:
        """The surrogate of what is measured now."""
        entries = len(self.ledger.entries)
        if self._fit is None or self.ledger.version != self._fitted:
            wanted = self.ledger.whole(self.target.wants)
            known = [entry.loss for entry in (*wanted[:1], *self.ledger.of_size(1)[:1])]
            trust = max([loss for loss in known if 0 < loss < math.inf], default=1.0)
            keep = self._fit is not None and entries < _REFIT * self._chosen
            strengths = self._fit.strengths if self._fit is not None and keep else None
            self._fit, self._fitted = Expansion(*self.ledger.samples(trust), strengths=strengths), self.ledger.version
            self._chosen = self._chosen if keep else entries
        return self._fit

    @property
    def inflation(self) -> float:
        """By how much recent squared errors were larger than the variances the surrogate gave for them, 1 at least."""
        return max(1.0, float(np.mean(self._surprises[-_RECENT:]))) if self._surprises else 1.0

    def predict(self, masks: Masks) -> tuple[Floats, Floats]:
        """Expected losses of masks, bool [M, n] → float64 [M], and their covariance, float64 [M, M]."""
        means, covariance = self.fit.predict(~masks)
        return means, covariance * self.inflation

    def expect(self, masks: Masks) -> tuple[Floats, Floats]:
        """Expected losses of masks, bool [M, n] → float64 [M], and their standard deviations, float64 [M]."""
        return self.fit.mean(~masks), np.sqrt(self.fit.variances(~masks) * self.inflation)

    def ask(self, masks: Masks, rows: Sequence[int], rival: Entry | None, *, race: bool = False) -> None:
        """Measure some rows of masks, bool [M, n], racing against a rival or each other, and note the errors."""
        asked = masks[list(rows)]
        means, variances = self.fit.mean(~asked), self.fit.variances(~asked) + self.fit.noise**2
        trusted = np.sqrt(variances * self.inflation)
        self.ledger.measure(asked, rival, race=race)
        for mask, mean, variance, deviation in zip(asked, means, variances, trusted, strict=True):
            entry = self.ledger.entries.get(mask.tobytes())
            if entry is not None and entry.whole and math.isfinite(entry.loss):
                self._surprises.append(min((entry.loss - float(mean)) ** 2 / float(variance), _MOST_SURPRISING))
                self.forecasts.append((int((~mask).sum()), float(mean), float(deviation), entry.loss))
