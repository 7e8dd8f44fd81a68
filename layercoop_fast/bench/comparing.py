"""Two runs of the benchmarks side by side: what changed by more than their own noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.bench.results import Results

MIN_ROUNDS = 5
RESAMPLES = 2000
CONFIDENCE = 0.99
LEAST_CHANGE = 0.02


@dataclass(frozen=True)
class Change:
    """One way of one figure in two runs.

    Attributes:
        figure: what was timed.
        way: how it was done.
        ratio: median seconds of the second run over those of the first; below 1 is faster.
        low: lower end of the ratio's interval (99 %, bootstrap of the medians over rounds).
        high: its upper end.
        verdict: "faster", "slower", "same" (within noise, or by less than 2 %), or "too few rounds" (fewer than 5).
    """

    figure: str
    way: str
    ratio: float
    low: float
    high: float
    verdict: str


def compare(first: Results, second: Results, *, seed: int = 0) -> list[Change]:
    """What both runs timed, in the order of the first; the same seed gives the same intervals.

    The rounds of one run share the state of the machine, so two runs of one version can differ by more than their
    rounds show: repeat the runs before you believe a small change.
    """
    later = {(figure.folder, figure.name): figure for figure in second.figures}
    rng = np.random.default_rng(seed)
    changes = []
    for figure in first.figures:
        other = later.get((figure.folder, figure.name))
        for way in figure.ways if other is not None else ():
            if other is not None and way in other.ways:
                changes.append(_change(figure.name, way, figure.ways[way], other.ways[way], rng))
    return changes


def differing_machines(first: Results, second: Results) -> list[str]:
    """Names of the parts in which the two runs' machines, versions or settings differ."""
    one = {**first.machine, **first.settings}
    other = {**second.machine, **second.settings}
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _change(figure: str, way: str, first: list[float], second: list[float], rng: np.random.Generator) -> Change:
    ratio = float(np.median(second) / np.median(first))
    medians = [np.median(rng.choice(rounds, (RESAMPLES, len(rounds))), axis=1) for rounds in (first, second)]
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(bound) for bound in np.quantile(medians[1] / medians[0], [tail, 1 - tail]))
    if min(len(first), len(second)) < MIN_ROUNDS:
        verdict = "too few rounds"
    elif high < 1 and ratio < 1 - LEAST_CHANGE:
        verdict = "faster"
    elif low > 1 and ratio > 1 + LEAST_CHANGE:
        verdict = "slower"
    else:
        verdict = "same"
    return Change(figure, way, ratio, low, high, verdict)
