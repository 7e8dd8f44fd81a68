"""Paired tests against all outcomes counted out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from layercoop_fast.tasks.paired import mcnemar, paired, sign_flip


@pytest.mark.parametrize(("won", "lost"), [(0, 5), (3, 4), (7, 1), (2, 2)])
def test_mcnemar_counts_as_many_outcomes_as_there_are(won: int, lost: int) -> None:
    """Of all ways in which the documents could fall, those that are as lopsided."""
    outcomes = [abs(2 * sum(fell) - won - lost) for fell in product((0, 1), repeat=won + lost)]
    expected = np.mean([outcome >= abs(won - lost) for outcome in outcomes])
    assert mcnemar(won, lost) == pytest.approx(expected)


def test_scores_of_0_and_1_take_mcnemar_and_others_sign_flips() -> None:
    ones, others = np.array([1.0, 1, 1, 0, 1, 1, 1]), np.array([0.0, 0, 1, 0, 0, 0, 0])
    exact = paired(ones, others)
    assert (exact.test, exact.difference) == ("mcnemar", pytest.approx(5 / 7))
    assert exact.p == pytest.approx(2 / 2**5)
    assert exact.stderr == pytest.approx((ones - others).std(ddof=1) / 7**0.5)
    halved = paired(ones / 2, others / 2)  # the same differences, counted by draws
    assert halved.test == "sign-flip"
    assert halved.p == pytest.approx(exact.p, abs=0.01)


def test_equal_scores_have_no_p_and_many_documents_are_no_trouble() -> None:
    same = np.array([0.0, 1, 1])
    assert paired(same, same).p is None
    assert paired(same / 3, same / 3).p is None
    assert mcnemar(50_000, 50_200) == pytest.approx(0.53, abs=0.02)
    assert mcnemar(0, 100_000) == pytest.approx(0, abs=1e-300)


def test_by_chance_a_sign_flip_is_as_small_as_it_says() -> None:
    rng = np.random.default_rng(0)
    p = np.array([sign_flip(rng.normal(size=10), draws=199, seed=seed) for seed in range(300)])
    assert abs((p < 0.2).mean() - 0.2) < 0.08
