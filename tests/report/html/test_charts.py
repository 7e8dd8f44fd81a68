from __future__ import annotations

import re

import pytest

from layercoop_fast.report.html.charts import MOST_CELLS, Axis, Bar, Point, Series, bars, heat, xy


def test_a_logarithmic_axis_places_by_ratio() -> None:
    points = [Point(0, 10.0, "a"), Point(1, 100.0, "b"), Point(2, 1000.0, "c")]
    drawn = xy([Series("s", points)], Axis("n", whole=True), Axis("ppl", log=True), "t")
    first, second, third = (float(y) for y in re.findall(r'cy="([\d.]+)"', drawn))
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert first > third
    assert ">100<" in drawn


@pytest.mark.parametrize("values", [[1.0], [0.0], [5.0, 5.0], [-2.0, 3.0], [1e9, 1e-9]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    points = [Point(i, value, "") for i, value in enumerate(values)]
    drawn = xy([Series("s", points)], Axis("x"), Axis("y"), "t")
    assert all(0 <= float(y) <= 250 for y in re.findall(r'cy="([-\d.]+)"', drawn))
    assert "nan" not in drawn
    assert "nan" not in bars([Bar(str(value), value, "") for value in values], "t", "u")


def test_bars_begin_at_zero() -> None:
    drawn = bars([Bar("a", 2.0, "", 1.0, 3.0), Bar("b", -1.0, "", marked=True)], "t", "u")
    (x_a, w_a), (x_b, w_b) = (
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)
    )
    assert x_a == pytest.approx(x_b + w_b, abs=0.2)
    assert w_a == pytest.approx(2 * w_b, abs=0.3)
    assert drawn.count('class="whisker"') == 1
    assert drawn.count("bar gone") == 1


def test_a_pair_is_coloured_by_sign_and_size() -> None:
    drawn = heat(["a", "b", "c"], {(0, 1): 1.0, (1, 0): 1.0, (0, 2): -0.01, (2, 0): -0.01}, "t", unit="nats")
    assert drawn.count("cell up s5") == 2
    assert drawn.count("cell down s1") == 2
    assert "a and c: −0.0100 nats" in drawn


def test_many_cells_are_drawn_by_colour() -> None:
    n = 60
    cells = {(i, j): float(i - j) for i in range(n) for j in range(n) if i != j}
    assert len(cells) > MOST_CELLS
    drawn = heat([str(i) for i in range(n)], cells, "t", unit="u")
    assert drawn.count("<path") <= 11
    assert drawn.count("M") >= len(cells)
    assert len(drawn) < 20 * len(cells)
