from __future__ import annotations

import math

import pytest

from layercoop_fast.report.html.markup import Html, el, number, signed


def test_only_html_is_not_escaped() -> None:
    assert el("p", "a < b & c", Html("<b>d</b>"), title='"x"') == (
        '<p title="&quot;x&quot;">a &lt; b &amp; c<b>d</b></p>'
    )
    assert el("p", None, class_=None) == "<p></p>"
    assert el("line", x1=3, data_label="e") == '<line x1="3" data-label="e"/>'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not finite"), (math.nan, "not finite"), (3, "3"), (1234567, "1,234,567"), (0.0, "0"),
        (12.3456, "12.35"), (-0.0012345, "−0.001234"), (1234.56, "1,235"), (0.00001234, "1.234e-05"),
        (3e9, "3.000e+09"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown
    if value and math.isfinite(value) and value > 0:
        assert signed(value, 4) == f"+{shown}"
