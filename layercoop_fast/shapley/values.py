"""The answer of every estimator: a value for each player, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layercoop_fast.masks.types import Floats


@dataclass(frozen=True, eq=False)
class ShapleyValues:
    """A value for each player, in the unit of the game's worth. `numpy.asarray(result)` gives `values`.

    Attributes:
        values: `float64[n]`, what each player adds, on average over the coalitions that `method` averages over.
        stderr: `float64[n]`, standard error of `values` from sampling alone; zeros where nothing was sampled.
        n_evaluations: number of masks asked of the game.
        method: the estimator: "exact", "permutation", "kernel_shap", or "shapiq" and its index where converted from
            there; or "stratified_marginals", whose values are not Shapley values.
    """

    values: Floats
    stderr: Floats
    n_evaluations: int
    method: str

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        if copy is None:  # NumPy 1 never passes `copy`, and its `np.array` refuses None.
            return np.asarray(self.values, dtype=dtype)
        return np.array(self.values, dtype=dtype, copy=copy)

    def order(self) -> npt.NDArray[np.intp]:
        """The players from least to most valuable, `intp[n]`; equal values by index."""
        return np.argsort(self.values, kind="stable")


class Moments:
    """Mean and standard error of independent samples `float64[B, n]` that come in batches and are not kept.

    Batches merge as mean += δ·B/N and S += S_batch + δ²·N_old·B/N with δ = mean_batch − mean, which keeps the digits
    that a sum of squares would cancel. Source: Chan, Golub and LeVeque, 1979.
    """

    def __init__(self, n: int) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(n)
        self._squares: Floats = np.zeros(n)

    def add(self, samples: Floats) -> None:
        """Add the samples `float64[B, n]`, B ≥ 1."""
        batch_mean = samples.mean(axis=0)
        delta = batch_mean - self.mean
        total = self.count + len(samples)
        self._squares += ((samples - batch_mean) ** 2).sum(axis=0) + delta**2 * (self.count * len(samples) / total)
        self.mean += delta * (len(samples) / total)
        self.count = total

    def stderr(self) -> Floats:
        """Return √(S / (N − 1) / N), `float64[n]`; N ≥ 2 samples are needed."""
        return np.asarray(np.sqrt(self._squares) / math.sqrt((self.count - 1) * self.count))
