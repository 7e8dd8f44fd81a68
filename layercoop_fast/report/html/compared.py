"""The report of `compare`: every method at every size on every text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layercoop_fast.report.html.charts import Axis, Point, Series, xy
from layercoop_fast.report.html.markup import Html, el, folded, join, number, table
from layercoop_fast.report.html.page import fragment, page
from layercoop_fast.report.html.quality import axis_of
from layercoop_fast.report.html.record import model_name

Record = dict[str, Any]

_JUDGES = {
    "items": "Share of items of four options, cut from texts that no search has seen, whose true option is the "
    "likeliest by its length.",
    "continuations": "Share of a greedy continuation before the first token that differs from the full model's.",
}


def comparison_page(record: Record) -> str:
    """The report of a comparison (`Comparison.record`) as one HTML file."""
    return page(f"{model_name(record)}: methods compared", _body(record))


def comparison_fragment(record: Record) -> str:
    """The report of a comparison as a part of another page."""
    return fragment(_body(record))


def _body(record: Record) -> Html:
    methods = list(dict.fromkeys(_label(row) for row in record["rows"]))
    texts = [Path(str(text)).stem for text in record["texts"]]
    made = [
        el("h1", f"{model_name(record)}: {', '.join(methods)} on {record['n_players']} players ({record['players']})"),
        el("p", f"Searched on {texts[0]}; the other texts no search has seen. Seed {record['seed']}."),
    ]
    for place, text in enumerate(texts):
        made += [el("h2", f"On {text}, {record['windows'][place]} windows of {record['tokens']} tokens")]
        made += [_charts(record, methods, place), _table(record, place)]
    for name, about in _JUDGES.items():
        if name in record["full"].get("judged", {}):
            made += [el("h2", name.capitalize()), el("p", about), _judged(record, name)]
    made += [el("h2", "What is removed, and what the search cost"), _choices(record)]
    made += [
        el("p", f"{one['method']} has no row at {one['remove']} removed: {one['reason']}", class_="soft")
        for one in record.get("refused", [])
    ]
    return el("main", *made)


def _charts(record: Record, methods: list[str], place: int) -> Html:
    full = record["full"]["texts"][place]["ppl"]
    drawn = []
    ways = (
        ("perplexity", "remove", "players removed"),
        ("worth", "remove", "players removed"),
        ("perplexity", "params_removed", "parameters removed"),
        ("perplexity", "passes", "cost of the search, passes of the full model"),
    )
    for what, across, label in ways:
        lines = []
        for colour, method in enumerate(methods):
            rows = [row for row in record["rows"] if _label(row) == method]
            points = [_point(row, row["texts"][place], what, across, full) for row in rows]
            known = [point for point in points if point is not None]
            lines.append(Series(method, known, colour, line=across == "remove"))
        values = [point.y for one in lines for point in one.points]
        if values:
            title = f"{what} against {label}".capitalize()
            drawn.append(xy(lines, Axis(label, whole=across == "remove"), axis_of(what, values), title))
    return el("div", *drawn, class_="figures")


def _point(row: Record, measured: Record, what: str, across: str, full: float | None) -> Point | None:
    ppl, error = measured["ppl"], measured["ppl_stderr"]
    if ppl is None or (what == "worth" and full is None):
        return None
    value, spread = ppl, error
    if what == "worth" and full is not None:
        value, spread = full / ppl, None
    text = f"{_label(row)}, {row['remove']} removed: {what} {number(value)}"
    if spread is not None:
        text += f" ± {number(spread, 2)}"
    return Point(float(row[across]), value, text, None if across != "remove" else spread)


def _table(record: Record, place: int) -> Html:
    rows = []
    for row in [record["full"], *record["rows"]]:
        one = row["texts"][place]
        error = "" if one["ppl_stderr"] is None else f" ± {number(one['ppl_stderr'], 2)}"
        rows.append([row["remove"], _label(row), number(one["ppl"]) + error, *_tested(record, row, one)])
    return folded("As a table", table(["removed", "method", "perplexity ± s.e.", *_tests(record)], rows))


def _judged(record: Record, name: str) -> Html:
    rows = []
    for row in [record["full"], *record["rows"]]:
        one = row["judged"].get(name)
        if one is not None:
            error = "" if one["stderr"] is None else f" ± {number(one['stderr'], 2)}"
            rows.append([row["remove"], _label(row), number(one["mean"]) + error, *_tested(record, row, one)])
    return el("div", table(["removed", "method", "share ± s.e.", *_tests(record)], rows), class_="stack")


def _tests(record: Record) -> list[str]:
    """Heads of the columns that `_tested` fills."""
    head = ["p against the best", "as good as the best"]
    return [*head, "p against the same model unrepaired"] if _any_compensated(record) else head


def _tested(record: Record, row: Record, one: Record) -> list[str]:
    p = "" if one["p_best"] is None or not row["remove"] else number(one["p_best"], 2)
    good = "yes" if row["remove"] and one["as_good_as_best"] else ""
    gain = number(one["p_unrepaired"], 2) if _compensated(row) else ""
    return [p, good, gain] if _any_compensated(record) else [p, good]


def _any_compensated(record: Record) -> bool:
    return any(_compensated(row) for row in record["rows"])


def _compensated(row: Record) -> bool:
    return bool(row.get("repaired") or row.get("compensation"))


def _choices(record: Record) -> Html:
    rows = []
    for row in record["rows"]:
        goes = "heads and channels" if row["removed"] is None else " ".join(map(str, row["removed"]))
        costs = [f"{row['masks']:,}", number(row["passes"]), number(row["seconds"])]
        rows.append([row["remove"], _label(row), goes, number(row["params_removed"]), *costs])
    head = ["removed", "method", "which", "parameters that go", "masks", "passes", "seconds"]
    note = (
        "As good as the best: a paired test over windows finds no difference (p ≥ 0.05). Worth: perplexity of the full "
        "model over that of the pruned one. Passes: cost in forward passes of the full model over the searched text. "
        "Latency is not measured here; `prune` measures it."
    )
    if _any_compensated(record):
        note += (
            " Models with a repair or another compensation are compared with the best of them; their seconds include "
            "its fit. "
            + " ".join(_left_out(row) for row in record["rows"] if row.get("repaired") and not row["repair"]["kept"])
        )
    return join([el("div", table(head, rows), class_="stack"), el("p", note, class_="soft")])


def _label(row: Record) -> str:
    if row.get("compensation"):
        return f"{row['method']} + {row['compensation']['name']}"
    return f"{row['method']} + repair" if row.get("repaired") else str(row["method"])


def _left_out(row: Record) -> str:
    return (
        f"{_label(row)} at {row['remove']} is the model without one: {row['repair'].get('reason', 'it does not help')}."
    )
