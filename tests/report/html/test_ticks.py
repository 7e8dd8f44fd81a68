"""Ticks of an axis lie within it."""

from __future__ import annotations

import pytest

from layercoop_fast.report.html.charts import Axis, _ticks


@pytest.mark.parametrize(("low", "high"), [(0.3, 9.7), (-4.2, 13.0), (101.0, 104.0)])
def test_ticks_lie_within_the_axis(low: float, high: float) -> None:
    found = _ticks(low, high, Axis("x"))
    assert len(found) >= 2
    assert all(low <= value <= high for value in found)
