"""Every size of a nested family, and what nesting costs each."""

from __future__ import annotations

from layercoop_fast.report.html.charts import Axis, Point, Series, xy
from layercoop_fast.report.html.markup import Html, el, join, number, signed, table
from layercoop_fast.report.html.quality import axis_of
from layercoop_fast.report.html.record import Record, loss_unit


def nested(record: Record) -> Html | None:
    """A line for each size, and its perplexity next to that of the best single mask of the size."""
    family = record.get("nested")
    if not family or not family["sizes"]:
        return None
    sizes = family["sizes"]
    unseen = any(one["heldout_ppl"] is not None for one in sizes)
    before: set[str] = set()
    rows: list[list[object]] = []
    for one in sizes:
        own = [str(label) for label in one["removed"]]
        row: list[object] = [one["n_removed"], " ".join(label for label in own if label not in before)]
        row += [number(one["ppl"]), *([number(one["heldout_ppl"])] if unseen else []), number(one["free_ppl"])]
        same = list(map(str, one["free"])) == own
        row += ["0" if same else signed(one["price"]), "the same" if same else " ".join(map(str, one["free"]))]
        rows.append(row)
        before = set(own)
    series = []
    for name, colour, values in (
        ("best of each size", 1, [one["free_ppl"] for one in sizes]),
        ("family", 0, [one["ppl"] for one in sizes]),
    ):
        points = [
            Point(one["n_removed"], value, f"{one['n_removed']} removed: perplexity {number(value)}, {name}")
            for one, value in zip(sizes, values, strict=True)
            if value is not None
        ]
        series.append(Series(name, points, colour))
    known = [point.y for one in series for point in one.points]
    head = ["removed", "goes in addition", "perplexity", *(["held-out"] if unseen else []), "best of the size"]
    head += [f"price, {loss_unit(record)}", "removed by the best of the size"]
    said = (
        "Each size leaves out what the size before it leaves out, and more, so one copy of the original weights serves "
        "them all: the mask DIR@3 is the size without 3 players. The price is what a size loses beyond "
        f"the best mask of that size that was measured. {_cost(family['cost'])} Perplexities are those of the original "
        "weights; a repair belongs to the checkpoint next to this page."
    )
    drawn = [
        xy(series, Axis("players removed", whole=True), axis_of("perplexity", known), "Perplexity of every size")
        for _ in range(len(sizes) > 1 and len(known) > 1)
    ]
    return join([*drawn, el("div", table(head, rows), class_="stack"), el("p", said, class_="soft")])


def _cost(cost: Record) -> str:
    parts = (
        ("size", "the largest size by itself"),
        ("free", "the other sizes by themselves"),
        ("family", "the family"),
    )
    told = ", ".join(f"{name} {_spent(cost[key])}" for key, name in parts)
    return f"What was measured for it: {told}."


def _spent(one: Record) -> str:
    passes = f" ({number(one['passes'])} passes of the full model)" if "passes" in one else ""
    return f"{one['masks']} masks{passes}"
