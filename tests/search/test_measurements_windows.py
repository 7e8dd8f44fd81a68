"""Masks are compared on the windows that both were measured on."""

from __future__ import annotations

import numpy as np

from layercoop_fast.search.measurements import Measurements


def test_differences_are_of_the_first_windows_of_both() -> None:
    ledger = Measurements(lambda masks: np.zeros(len(masks)), 3, 10)
    whole, few = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 1.0])
    assert ledger._difference(whole, few).tolist() == [0.0, 1.0]
    assert ledger._difference(few, whole).tolist() == [0.0, -1.0]
