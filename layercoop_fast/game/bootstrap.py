"""How certain it is, on some number of windows, that one mask is better than another: a bootstrap of the windows.

A drawing takes as many windows of every text, with repeats, as the game has of it. Both masks are measured on the same
windows, so what makes a window hard for every mask cancels. Source: Efron, Bootstrap methods: another look at the
jackknife (1979); strata as in Davison and Hinkley, Bootstrap Methods and their Application (1997), chapter 3.
"""

from __future__ import annotations

import numpy as np

from layercoop_fast.texts.domains import Domains, Floats, Ints, one_domain

RESAMPLES = 2000


def draw_windows(domains: Domains, draws: int, rng: np.random.Generator) -> Ints:
    """How often each drawing holds each window, int64 [draws, W]: of every text as many as there are."""
    counts = np.zeros((draws, len(domains.of_window)), np.int64)
    for domain in domains.present:
        windows = np.flatnonzero(domains.of_window == domain)
        counts[:, windows] = rng.multinomial(len(windows), np.full(len(windows), 1 / len(windows)), size=draws)
    return counts


def probability_better(
    best: Floats,
    other: Floats,
    *,
    rng: np.random.Generator,
    domains: Domains | None = None,
    objective: str = "mean",
    resamples: int = RESAMPLES,
) -> float | None:
    """Share of drawings of the windows on which `other` is better than `best`; a tie counts as half.

    Args:
        best, other: what each window's loss rose by against the full model, float64 [W] each.
        domains: the texts of the windows; one text where None.
        objective: "mean" or "worst" over texts.

    None where this cannot be said: a text with a single window, or a loss that is not finite.
    """
    domains = one_domain(len(best)) if domains is None else domains
    if not (np.isfinite(best).all() and np.isfinite(other).all()):
        return None
    if min(np.bincount(domains.of_window)[domains.present], default=0) < 2:
        return None
    counts = draw_windows(domains, resamples, rng)
    # The difference of two nearly equal losses must not come from rounding.
    if objective == "mean":
        difference = domains.loss(counts * (other - best), objective)
    else:
        difference = domains.loss(counts * other, objective) - domains.loss(counts * best, objective)
    return float((difference < 0).mean() + 0.5 * (difference == 0).mean())
