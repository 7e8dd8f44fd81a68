from __future__ import annotations

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.surrogate.link import Link


def test_ratios_are_fitted_by_their_logarithm_and_come_back() -> None:
    worths = np.array([1.0, 0.5, 1e-9, 1.2])
    link = Link.of(worths)
    assert link.scale == "log"
    np.testing.assert_allclose(link.forward(worths), np.log(worths), rtol=1e-15)
    np.testing.assert_allclose(link.back(link.forward(worths)), worths, rtol=1e-14)


@pytest.mark.parametrize("worths", [[-1.0, -2.0], [-1.0, 0.0, 2.0], [0.0, 0.0]])
def test_logarithms_already_and_mixed_signs_are_taken_as_they_are(worths: list[float]) -> None:
    link = Link.of(np.array(worths))
    assert link.scale == "identity"
    np.testing.assert_array_equal(link.back(link.forward(np.array(worths))), worths)


def test_a_worth_of_zero_counts_as_the_least_positive_one() -> None:
    link = Link.of(np.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(link.forward(np.array([0.0, 0.1, 0.25])), np.log([0.25, 0.1, 0.25]))


def test_what_no_float_holds_is_infinity_without_a_warning() -> None:
    assert Link("log", 1.0).back(np.array([1e4, -1e4])).tolist() == [np.inf, 0.0]


@pytest.mark.parametrize(
    ("worths", "scale", "words"),
    [
        ([0.5, -0.5], "log", "1 of 2 worths are negative"),
        ([0.0, 0.0], "log", "no worth is positive"),
        ([0.5], "logit", "unknown scale 'logit': the scales are auto, log, identity"),
    ],
)
def test_bad_scales_are_refused(worths: list[float], scale: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Link.of(np.array(worths), scale)


def test_later_negative_worths_are_refused_with_their_count() -> None:
    with pytest.raises(RequestError, match="2 of 3 worths are negative"):
        Link.of(np.array([0.5])).forward(np.array([-1.0, 1.0, -1.0]))
