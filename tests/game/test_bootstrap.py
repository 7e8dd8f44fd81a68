"""The bootstrap of windows against all its drawings listed one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from layercoop_fast.game.bootstrap import draw_windows, probability_better
from layercoop_fast.texts.domains import Domains, one_domain

# Two texts that take turns, the second of which counts three times as much and has two windows.
TWO = Domains(np.array([0, 1, 0, 1, 0]), np.array([1.0, 3.0]), ("a", "b"))


def exactly(best: list[float], other: list[float], domains: Domains, objective: str) -> float:
    """The share of all equally likely drawings, each text's windows drawn for themselves, on which `other` loses less.

    A tie counts as half.
    """
    texts = [np.flatnonzero(domains.of_window == text).tolist() for text in domains.present]
    weights = domains.weights[domains.present] / domains.weights[domains.present].sum()
    shares = []
    for drawn in product(*(product(windows, repeat=len(windows)) for windows in texts)):
        means = np.array([[np.mean([loss[w] for w in windows]) for windows in drawn] for loss in (best, other)])
        first, second = means @ weights if objective == "mean" else means.max(axis=1)
        shares.append(0.5 if abs(second - first) < 1e-12 else float(second < first))
    return float(np.mean(shares))


@pytest.mark.parametrize("objective", ["mean", "worst"])
@pytest.mark.parametrize(
    ("best", "other", "domains"),
    [
        ([0.0, 0.0, 0.0], [1.0, -1.0, 0.25], one_domain(3)),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0], one_domain(4)),
        ([1.0, 2.0, 3.0, 0.5, 2.0], [3.0, 1.5, 1.0, 1.0, 2.5], TWO),
        ([1.0, 1.0, 1.0, 3.0, 1.0], [1.0, 1.0, 1.0, 3.0, 1.0], TWO),  # the same: half
        ([0.0, 2.0, 0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 2.5, 1.0], TWO),
    ],
)
def test_the_share_is_that_of_all_drawings(
    best: list[float], other: list[float], domains: Domains, objective: str
) -> None:
    rng = np.random.default_rng(0)
    found = probability_better(
        np.array(best), np.array(other), rng=rng, domains=domains, objective=objective, resamples=40_000
    )
    assert found == pytest.approx(exactly(best, other, domains, objective), abs=0.01)


def test_every_text_keeps_its_number_of_windows() -> None:
    counts = draw_windows(TWO, 20_000, np.random.default_rng(1))
    assert (counts[:, [0, 2, 4]].sum(axis=1) == 3).all()
    assert (counts[:, [1, 3]].sum(axis=1) == 2).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.03)
    # Var of a window's count among W windows of its text: 1 − 1/W.
    np.testing.assert_allclose(counts.var(axis=0), [2 / 3, 1 / 2, 2 / 3, 1 / 2, 2 / 3], atol=0.03)
