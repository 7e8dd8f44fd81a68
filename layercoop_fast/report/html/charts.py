"""Charts as inline SVG: drawn once, readable without a script, coloured by the page's style sheet.

All are drawn 360 units wide, about as wide as the narrowest screen, so that text has its size there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from layercoop_fast.report.html.markup import Html, el, number

WIDTH = 360
# More cells than this are drawn by colour, without a tooltip each, to keep the file small.
MOST_CELLS = 2_500
_SHADES = 5
# Characters of a label that there is room for.
_LABEL = 9
_COLOURS = 8


@dataclass(frozen=True)
class Point:
    """A point of a series: its place, half the length of its error bar, what its tooltip says, drawn hollow or not."""

    x: float
    y: float
    title: str
    error: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line or not; from the ninth colour on the first ones come again, dashed."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    line: bool = True
    steps: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and whether by its logarithm."""

    label: str
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Where a value lies on the scale that is drawn."""
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, with its interval."""

    label: str
    value: float
    title: str
    low: float | None = None
    high: float | None = None
    marked: bool = field(default=False)


def xy(series: Sequence[Series], x: Axis, y: Axis, title: str, *, diagonal: bool = False) -> Html:
    """Points and lines on two axes."""
    left, right, top, bottom = 64, 8, 8, 40
    height = 250
    points = [point for one in series for point in one.points]
    xs = [x.place(point.x) for point in points]
    ys = [y.place(value) for point in points for value in _span(point, y)]
    if diagonal:
        xs = ys = xs + ys
    (x_low, x_high), (y_low, y_high) = _padded(xs), _padded(ys)

    def at_x(value: float) -> float:
        return round(left + (x.place(value) - x_low) / (x_high - x_low) * (WIDTH - left - right), 1)

    def at_y(value: float) -> float:
        return round(height - bottom - (y.place(value) - y_low) / (y_high - y_low) * (height - top - bottom), 1)

    drawn: list[Html] = []
    for value in _ticks(y_low, y_high, y):
        drawn += [el("line", x1=left, x2=WIDTH - right, y1=at_y(value), y2=at_y(value), class_="grid")]
        drawn += [el("text", _tick(value), x=left - 5, y=at_y(value) + 4, class_="end")]
    for value in _ticks(x_low, x_high, x):
        drawn += [el("line", x1=at_x(value), x2=at_x(value), y1=top, y2=height - bottom, class_="grid")]
        drawn += [el("text", _tick(value), x=at_x(value), y=height - bottom + 15, class_="middle")]
    drawn += [el("text", x.label, x=(left + WIDTH) / 2, y=height - 6, class_="middle axis")]
    drawn += [el("text", y.label, transform=f"translate(10 {(height - bottom) / 2}) rotate(-90)", class_="middle axis")]
    if diagonal:
        ends = max(x_low, y_low), min(x_high, y_high)
        drawn += [el("line", x1=at_x(ends[0]), y1=at_y(ends[0]), x2=at_x(ends[1]), y2=at_y(ends[1]), class_="diagonal")]
    for one in series:
        drawn.append(_drawn(one, [(at_x(p.x), at_y(p.y), [at_y(v) for v in _span(p, y)]) for p in one.points]))
    return _figure(height, title, drawn, _legend(series))


def _drawn(one: Series, places: Sequence[tuple[float, float, Sequence[float]]]) -> Html:
    """One series: its line, then its error bars and markers."""
    made: list[Html] = []
    if one.line and len(places) > 1:
        path = f"M{places[0][0]} {places[0][1]}"
        for x, y, _ in places[1:]:
            path += f"H{x}V{y}" if one.steps else f"L{x} {y}"
        made.append(el("path", d=path, class_="curve"))
    for point, (x, y, ends) in zip(one.points, places, strict=True):
        error = el("line", x1=x, x2=x, y1=ends[0], y2=ends[-1], class_="error") if len(ends) > 1 else None
        marker = el("circle", el("title", point.title), cx=x, cy=y, r=3.5, class_="hollow" if point.hollow else "dot")
        made += [el("g", error, marker)]
    return el("g", *made, class_=f"series {_colour(one)}")


def _colour(one: Series) -> str:
    return f"c{one.colour % _COLOURS}" + (" again" if one.colour >= _COLOURS else "")


def bars(rows: Sequence[Bar], title: str, unit: str) -> Html:
    """Bars from zero, one below the other, with whiskers for their intervals; marked ones in the second colour."""
    left, right, step = 64, 10, 15
    ends = [value for row in rows for value in (row.value, row.low, row.high, 0.0) if value is not None]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1.0
    width = high - low
    height = step * len(rows) + 44
    axis = Axis(unit)

    def at(value: float) -> float:
        return round(left + (value - low) / width * (WIDTH - left - right), 1)

    drawn = []
    for value in _ticks(low, high, axis):
        drawn += [el("line", x1=at(value), x2=at(value), y1=4, y2=height - 38, class_="grid")]
        drawn += [el("text", _tick(value), x=at(value), y=height - 24, class_="middle")]
    for i, row in enumerate(rows):
        y = 6 + step * i
        first, last = sorted((at(0.0), at(row.value)))
        body = el("rect", x=first, y=y, width=round(max(last - first, 0.5), 1), height=step - 4)
        whisker = None
        if row.low is not None and row.high is not None:
            middle = y + (step - 4) / 2
            whisker = el("line", x1=at(row.low), x2=at(row.high), y1=middle, y2=middle, class_="whisker")
        label = el("text", row.label[:_LABEL], x=left - 6, y=y + 10, class_="end")
        kind = "bar gone" if row.marked else "bar stays"
        drawn.append(el("g", el("title", row.title), label, body, whisker, class_=kind))
    drawn.append(el("text", unit, x=(left + WIDTH) / 2, y=height - 5, class_="middle axis"))
    return _figure(height, title, drawn)


def heat(labels: Sequence[str], cells: dict[tuple[int, int], float], title: str, *, unit: str) -> Html:
    """A square map of pairs (row, column) of players, each cell coloured by sign and size."""
    n = len(labels)
    left, top = 58, 24
    side = (WIDTH - left - 4) / n
    largest = max((abs(value) for value in cells.values()), default=0.0) or 1.0
    drawn: list[Html] = []
    gathered: dict[str, list[str]] = {}
    for (row, column), value in cells.items():
        # Square roots, so that a few strong pairs do not make all others white.
        shade = math.ceil(math.sqrt(abs(value) / largest) * _SHADES) if value else 0
        kind = f"{'up' if value > 0 else 'down'} s{shade}"
        x, y = left + column * side, top + row * side
        if len(cells) > MOST_CELLS:
            gathered.setdefault(kind, []).append(f"M{column} {row}h1v1h-1z")
            continue
        say = el("title", f"{labels[row]} and {labels[column]}: {number(value, 3)} {unit}")
        size = round(side, 2)
        drawn.append(el("rect", say, x=round(x, 1), y=round(y, 1), width=size, height=size, class_=f"cell {kind}"))
    paths = [el("path", d="".join(parts), class_=f"cell {kind}") for kind, parts in gathered.items()]
    if paths:
        drawn.append(el("g", *paths, transform=f"translate({left} {top}) scale({side:.5f})"))
    shown = [label[:_LABEL] for label in labels]
    broad = 8 * max(map(len, shown))  # units that a label and a space take
    for i in range(0, n, math.ceil(13 / side)):
        drawn.append(el("text", shown[i], x=left - 4, y=round(top + (i + 0.5) * side + 4, 1), class_="end"))
    for i in range(0, n, math.ceil(broad / side)):
        drawn.append(el("text", shown[i], x=round(left + (i + 0.5) * side, 1), y=top - 6, class_="middle"))
    scale = f"strongest: ±{number(largest, 3)} {unit}"
    keys = [
        el("span", el("i", class_="key gone"), "costs more together"),
        el("span", el("i", class_="key stays"), "costs less together"),
    ]
    return _figure(math.ceil(top + n * side + 4), title, drawn, el("p", *keys, scale, class_="legend"))


def _figure(height: int, title: str, drawn: Sequence[Html], legend: Html | None = None) -> Html:
    picture = el("svg", el("title", title), *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=title)
    return el("figure", el("figcaption", title), picture, legend)


def _legend(series: Sequence[Series]) -> Html | None:
    named = [one for one in series if one.name]
    if len(named) < 2:
        return None
    return el("p", *(el("span", el("i", class_=f"key {_colour(one)}"), one.name) for one in named), class_="legend")


def _span(point: Point, axis: Axis) -> tuple[float, ...]:
    """The ends of a point's error bar, or the point alone."""
    if not point.error or (axis.log and point.y <= point.error):
        return (point.y,)
    return point.y - point.error, point.y + point.error


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, axis: Axis) -> list[float]:
    """Round values within a scale, as they are written."""
    if axis.log:
        decades = range(math.floor(low), math.ceil(high) + 1)
        found = [
            m * 10.0**decade for decade in decades for m in (1, 2, 5) if low <= math.log10(m * 10.0**decade) <= high
        ]
        if 2 <= len(found) <= 8:
            return found
        if len(found) > 8:
            tens = [value for value in found if round(math.log10(value), 6) % 1 == 0]
            return tens[:: math.ceil(len(tens) / 6)]
        return [float(f"{10 ** (low + share * (high - low)):.3g}") for share in (0.1, 0.5, 0.9)]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    if axis.whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{name}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
