"""What distillation regained on held-out text of every kind, and how."""

from __future__ import annotations

import math
from typing import Any

from layercoop_fast.report.html.charts import Axis, Point, Series, xy
from layercoop_fast.report.html.markup import Html, el, join, number, table
from layercoop_fast.report.html.record import Record, spec_name


def healing(record: Record) -> Html | None:
    """A line for each kind of text, the curve against tokens, and what was trained."""
    found = record.get("healing")
    if not found:
        return None
    pieces: list[object] = []
    if not found["kept"]:
        pieces.append(el("p", f"The weights are as they were: {found['reason']}."))
    if found["stopped"]:
        pieces.append(el("p", f"It ended early: {found['stopped']}."))
    rows = [[spec_name(spec), *map(_perplexity, (one["before"], one["after"]))] for spec, one in found["nll"].items()]
    head = ["text, held-out windows", "perplexity before", "perplexity after"]
    pieces.append(el("div", table(head, rows), class_="stack"))
    series = [
        Series(spec_name(spec), _points(found["curve"], spec), colour) for colour, spec in enumerate(found["texts"])
    ]
    if all(len(one.points) > 1 for one in series):
        title = "Perplexity on held-out text against tokens of healing"
        pieces.append(el("div", xy(series, Axis("tokens"), Axis("perplexity"), title), class_="figures"))
    told = (
        f"Trained ({found['train']}): {number(found['parameters'])} parameters on {found['tokens']:,} tokens in "
        f"{number(found['seconds'])} s, towards {found['teacher']}."
    )
    left_out = " ".join(map(str, found["left_out"]))
    pieces.append(el("p", f"{told} {left_out}".strip(), class_="soft"))
    return join(pieces)


def _points(curve: list[dict[str, Any]], spec: str) -> list[Point]:
    """The looks at one kind, those whose perplexity is a number."""
    known = [(point["tokens"], point["choice"][spec]) for point in curve if (point["choice"][spec] or math.inf) < 700]
    return [
        Point(tokens, math.exp(nll), f"{tokens:,} tokens: {spec_name(spec)} {_perplexity(nll)}")
        for tokens, nll in known
    ]


def _perplexity(nll: float | None) -> str:
    return "not finite" if nll is None or nll > 700 else number(math.exp(nll))
