from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from layercoop_fast.surrogate.quality import coverage, kendall_by_stratum, kendall_tau, r_squared


def plain_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's τ-b by its definition, pair by pair."""
    agree = disagree = tied_a = tied_b = 0
    for i, j in combinations(range(len(a)), 2):
        product = (a[i] - a[j]) * (b[i] - b[j])
        agree += product > 0
        disagree += product < 0
        tied_a += a[i] == a[j]
        tied_b += b[i] == b[j]
    pairs = len(a) * (len(a) - 1) // 2
    return (agree - disagree) / math.sqrt((pairs - tied_a) * (pairs - tied_b))


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("count", [2, 17, 60])
def test_tau_is_its_definition_with_and_without_ties(count: int, levels: int) -> None:
    rng = np.random.default_rng(count)
    a = rng.integers(levels, size=count).astype(float)
    b = a + rng.integers(levels, size=count)
    a[0], b[0] = -1, -1  # two distinct values at least
    assert kendall_tau(a, b) == pytest.approx(plain_tau(a, b), abs=1e-12)


def test_tau_at_its_ends() -> None:
    a = np.arange(5.0)
    assert kendall_tau(a, a**3) == 1
    assert kendall_tau(a, -a) == -1
    assert math.isnan(kendall_tau(a, np.zeros(5)))
    assert math.isnan(kendall_tau(a[:1], a[:1]))
    assert math.isnan(kendall_tau(a[:0], a[:0]))


def test_tau_by_stratum_compares_within_it_alone() -> None:
    masks = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=bool)
    truth, predicted = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([9.0, 10.0, 4.0, 3.0, 0.0])
    taus = kendall_by_stratum(masks, truth, predicted)
    assert list(taus) == [1, 2, 3]
    assert (taus[1], taus[2]) == (1, -1)
    assert math.isnan(taus[3])


def test_r_squared() -> None:
    truth = np.array([1.0, 2.0, 6.0])
    assert r_squared(truth, truth) == 1
    assert r_squared(truth, np.full(3, 3.0)) == 0
    assert r_squared(truth, np.array([1.0, 2.0, 3.0])) == pytest.approx(1 - 9 / 14)
    assert math.isnan(r_squared(np.full(3, 0.1), truth)), "their mean is not 0.1 to the last digit"
    assert math.isnan(r_squared(truth[:0], truth[:0]))


def test_coverage_counts_errors_within_one_and_two_spreads() -> None:
    assert coverage(np.array([0.5, -1.0, 1.5, -3.0]), np.ones(4)) == (0.5, 0.75)
    assert all(math.isnan(share) for share in coverage(np.empty(0), np.empty(0)))
