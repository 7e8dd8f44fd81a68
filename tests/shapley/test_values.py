from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.shapley.values import Moments, ShapleyValues


def test_converts_to_an_array() -> None:
    result = ShapleyValues(np.array([0.5, 0.25]), np.zeros(2), 4, "exact")
    assert np.asarray(result).tolist() == [0.5, 0.25]
    assert np.asarray(result) is result.values
    assert np.asarray(result, dtype=np.float32).dtype == np.float32
    assert np.array(result) is not result.values
    assert result.__array__(np.float32).dtype == np.float32, "as NumPy 1 calls it"
    assert not np.shares_memory(result.__array__(copy=True), result.values)


def test_order_is_least_first_and_ties_by_index() -> None:
    assert ShapleyValues(np.array([1.0, 0.0, 1.0, 0.0]), np.zeros(4), 0, "exact").order().tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("cuts", [[], [1], [5, 6, 40]])
def test_moments_of_batches_are_moments_of_all(cuts: list[int]) -> None:
    samples = np.random.default_rng(1).normal(size=(60, 3)) + 1e6  # a sum of squares would lose the spread here
    moments = Moments(3)
    for batch in np.split(samples, cuts):
        moments.add(batch)
    assert moments.count == 60
    np.testing.assert_allclose(moments.mean, samples.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.stderr(), samples.std(axis=0, ddof=1) / np.sqrt(60), rtol=1e-8)
