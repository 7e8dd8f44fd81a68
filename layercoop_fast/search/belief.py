"""The losses that a search expects of masks it has not measured, with variances corrected by its recent errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.measurements import MeasuredMask, Measurements
from layercoop_fast.search.target import Target
from layercoop_fast.surrogate.expansion import Expansion

# The prior strengths of the surrogate's parts are chosen again when the number of masks has grown by this factor.
_REFIT = 1.2
# Recent predictions that the variances are checked against, and the most that one of them may count.
_RECENT, _MOST_SURPRISING = 24, 16.0


class Belief:
    """A surrogate fitted to all measurements, and fitted again whenever there are new ones.

    Args:
        measurements: of the search.
        target: of the search; losses up to that of the best mask that meets it are fitted with full trust.

    Attributes:
        forecasts: for each mask that was measured in full by `ask`: the number of removed players, expected loss, its
            standard deviation, and measured loss.
    """

    def __init__(self, measurements: Measurements, target: Target) -> None:
        self.measurements, self.target = measurements, target
        self._fit: Expansion | None = None
        self._fitted, self._chosen = -1, 0
        self._surprises: list[float] = []
        self.forecasts: list[tuple[int, float, float, float]] = []

    @property
    def fit(self) -> Expansion:
        """The surrogate of all measurements so far."""
        entries = len(self.measurements.entries)
        if self._fit is None or self.measurements.version != self._fitted:
            wanted = self.measurements.whole(self.target.wants)
            known = [entry.loss for entry in (*wanted[:1], *self.measurements.of_size(1)[:1])]
            trust = max([loss for loss in known if 0 < loss < math.inf], default=1.0)
            keep = self._fit is not None and entries < _REFIT * self._chosen
            strengths = self._fit.strengths if self._fit is not None and keep else None
            self._fit, self._fitted = (
                Expansion(*self.measurements.samples(trust), strengths=strengths),
                self.measurements.version,
            )
            self._chosen = self._chosen if keep else entries
        return self._fit

    @property
    def inflation(self) -> float:
        """Mean of recent squared errors over the variances that the surrogate stated for them, at least 1."""
        return max(1.0, float(np.mean(self._surprises[-_RECENT:]))) if self._surprises else 1.0

    def predict(self, masks: Masks) -> tuple[Floats, Floats]:
        """Expected losses of masks, bool [M, n] → float64 [M], and their covariance, float64 [M, M]."""
        means, covariance = self.fit.predict(~masks)
        return means, covariance * self.inflation

    def expect(self, masks: Masks) -> tuple[Floats, Floats]:
        """Expected losses of masks, bool [M, n] → float64 [M], and their standard deviations, float64 [M]."""
        return self.fit.mean(~masks), np.sqrt(self.fit.variances(~masks) * self.inflation)

    def ask(self, masks: Masks, rows: Sequence[int], rival: MeasuredMask | None, *, race: bool = False) -> None:
        """Measure the given rows of masks, bool [M, n], in a race with a rival or each other, and record the errors."""
        asked = masks[list(rows)]
        means, variances = self.fit.mean(~asked), self.fit.variances(~asked) + self.fit.noise**2
        trusted = np.sqrt(variances * self.inflation)
        self.measurements.measure(asked, rival, race=race)
        for mask, mean, variance, deviation in zip(asked, means, variances, trusted, strict=True):
            entry = self.measurements.entries.get(mask.tobytes())
            if entry is not None and entry.whole and math.isfinite(entry.loss):
                self._surprises.append(min((entry.loss - float(mean)) ** 2 / float(variance), _MOST_SURPRISING))
                self.forecasts.append((int((~mask).sum()), float(mean), float(deviation), entry.loss))
