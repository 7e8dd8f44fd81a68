"""What is left: the summary, quality against size and latency, the texts that suffer, and what both models write."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from layercoop_fast.report.html.charts import Axis, Bar, Point, Series, bars, xy
from layercoop_fast.report.html.markup import Html, el, folded, join, number, signed, table
from layercoop_fast.report.html.record import (
    Record,
    Step,
    of_loss,
    of_pruned,
    path,
    player_names,
    removed_players,
    spec_name,
)

# From this ratio of largest to least on, perplexities are drawn by their logarithm.
_LOG_FROM = 5.0
_WINDOWS_SHOWN = 24


def summary(record: Record) -> Html:
    """The result at a glance, and which players stay."""
    names, gone = player_names(record), set(removed_players(record))
    facts = {f"players removed ({record['players']})": f"{len(gone)} of {len(names)}", "method": record["method"]}
    when = ", before healing" if record.get("healing") else ""
    for name, source in _texts(record):
        facts[f"perplexity, {name}{when}"] = f"{number(source['ppl']['full'])} → {number(of_pruned(source['ppl']))}"
    facts[f"worth{when}"] = f"{number(record['worth']['full'])} → {number(of_pruned(record['worth']))}"
    budget = record.get("budget") or {"kind": "remove"}
    if budget["kind"] != "remove":
        facts[f"{budget['kind']}, asked → reached"] = f"{number(budget['asked'])} → {number(budget['reached'])}"
    cost = record.get("cost")
    if cost:
        full, pruned = cost["full"], cost["pruned"]
        facts["parameters"] = f"{number(full['params'])} → {number(pruned['params'])}"
        facts["decode, tokens a second"] = f"{number(full['decode_tok_s'])} → {number(pruned['decode_tok_s'])}"
    chips = (
        el("li", name, class_="gone" if player in gone else None, title="goes" if player in gone else "stays")
        for player, name in enumerate(names)
    )
    told = f"Removed, by number in the original model: {' '.join(map(str, record['removed']))} (struck through below)."
    tiles = (el("div", el("dt", name), el("dd", fact)) for name, fact in facts.items())
    return join([el("dl", *tiles, class_="big"), el("p", told), el("ol", *chips, class_="strip")])


def against_size(record: Record) -> Html | None:
    """Perplexity and worth against players removed."""
    steps = path(record)
    charts = []
    seeds = _seeds(record)
    for what, values in (("perplexity", [step.ppl for step in steps]), ("worth", [step.worth for step in steps])):
        known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
        points = [
            Point(step.n_removed, value, f"{step.n_removed} removed: {what} {number(value)}")
            for step, value in known
            if not step.repaired
        ]
        if len(points) < 2:
            continue
        others = [
            Series(name, [Point(size, value, f"{size} removed by {name}: {what} {number(value)}")], colour, line=False)
            for colour, (name, size, worth, ppl) in enumerate(seeds, 1)
            if (value := ppl if what == "perplexity" else worth) is not None
        ]
        others += [
            Series(
                "repaired",
                [Point(step.n_removed, value, f"{step.n_removed} removed, repaired: {what} {number(value)}")],
                len(others) + 1,
                line=False,
            )
            for step, value in known
            if step.repaired
        ]
        axis = axis_of(what, [value for _, value in known] + [point.y for one in others for point in one.points])
        title = f"{what} on the calibration text against players removed, {record['method']}"
        series = [*others, Series(record["method"] if others else "", points)]
        charts.append(xy(series, Axis("players removed", whole=True), axis, title.capitalize()))
    if not charts:
        return None
    names = player_names(record)
    rows = [
        [
            step.n_removed,
            number(step.ppl),
            number(step.worth),
            " ".join(names[player] for player in step.removed) + (", repaired" if step.repaired else ""),
        ]
        for step in steps
    ]
    rows += [[size, number(ppl), number(worth), f"by {name}"] for name, size, worth, ppl in seeds]
    note = "`layercoop-fast compare` writes a report that compares this method with others."
    if seeds:
        note = f"Points off the line: what the one-pass rules choose, which the search measured too. {note}"
    if steps[-1].repaired:
        note = f"What was written is the repaired model; nothing else here is repaired. {note}"
    head = ["removed", "perplexity", "worth", "which"]
    return join(
        [el("div", *charts, class_="figures"), folded("As a table", table(head, rows)), el("p", note, class_="soft")]
    )


def _seeds(record: Record) -> list[tuple[str, int, float | None, float | None]]:
    """What the search measured of other rules' choices: name, players removed, worth, perplexity."""
    found = (record.get("details") or {}).get("seeds") or []
    return [
        (one["method"], one["n_removed"], *of_loss(record, one["loss"])) for one in found if one["loss"] is not None
    ]


def pareto(record: Record) -> Html | None:
    """Perplexity against parameters and against latency, with the front and the chosen point."""
    steps = [step for step in path(record) if step.ppl is not None and step.params(record) is not None]
    if len(steps) < 2:
        return None
    figures = [(step.params(record), _latency(record, step), step.ppl) for step in steps]
    front = _front([[float(value or 0.0) for value in row] for row in figures])
    cost = record.get("cost")
    by_size, by_latency, rows = [], [], []
    for i, step in enumerate(steps):
        params, latency, measured = step.params(record), _latency(record, step), step.chosen or not step.n_removed
        text = f"{step.n_removed} removed: {number(params)} parameters, perplexity {number(step.ppl)}"
        by_size.append(Point(float(params or 0), float(step.ppl or 0), text))
        how = "" if measured else " (between the measured ends)"
        if latency is not None:
            text = f"{step.n_removed} removed: {number(latency)} ms a token{how}, perplexity {number(step.ppl)}"
            by_latency.append(Point(latency, float(step.ppl or 0), text, hollow=not measured))
        chosen = ("chosen, repaired" if step.repaired else "chosen") if step.chosen else ""
        speed = "not measured" if latency is None else f"{number(latency)}{how}"
        rows.append([step.n_removed, number(params), speed, number(step.ppl), "yes" if i in front else "no", chosen])
    scale = axis_of("perplexity", [point.y for point in by_size])
    charts = [
        xy(_with_front(points, steps), Axis(label), scale, title)
        for points, label, title in (
            (by_size, "parameters used", "Perplexity against size"),
            (by_latency, "decode, ms a token", "Perplexity against latency; hollow: not measured, interpolated"),
        )
        if points
    ]
    notes = [
        "On the front is what no other point equals or beats in everything; each chart draws that of its two figures."
    ]
    if cost:
        notes.append(
            "Latency was measured for the full and the chosen model; in between it is interpolated by parameters."
        )
    if steps[-1].repaired:
        notes.append("The chosen model is repaired; the others on the way are as they were cut.")
    if record["players"] != "layers":
        notes.append(
            "A checkpoint keeps a half that went as zeros, so its file may hold more parameters than are used."
        )
    head = ["removed", "parameters used", "decode, ms a token", "perplexity", "on the front", ""]
    return join(
        [
            el("div", *charts, class_="figures"),
            el("p", " ".join(notes), class_="soft"),
            folded("As a table", table(head, rows)),
        ]
    )


def texts(record: Record) -> Html | None:
    """Which text, and which of its windows, lose most."""
    rows: list[list[Any]] = []
    charts, tables = [], []
    for name, source in _texts(record):
        windows = source.get("window_nll")
        if not windows:
            continue
        rise = [
            None if None in (full, pruned) else pruned - full
            for full, pruned in zip(windows["full"], windows["pruned"], strict=True)
        ]
        if all(value is None for value in rise):
            continue
        for part, members in _parts(record, len(rise)) if source is record else [(name, range(len(rise)))]:
            known = [(value, i) for i in members if (value := rise[i]) is not None]
            if not known:
                continue
            values = [value for value, _ in known]
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
            spread = "" if error is None else f" ± {number(error, 2)}"
            worst = max(known)
            mean = statistics.fmean(values)
            rows.append([part, number(mean, 3) + spread, f"window {worst[1]}: {signed(worst[0])}", mean])
        begins = record.get("excerpts") if source is record else None
        order = sorted((i for i, value in enumerate(rise) if value is not None), key=lambda i: -(rise[i] or 0.0))
        drawn = [
            Bar(
                f"window {i}",
                rise[i] or 0.0,
                f"window {i}: {number(windows['full'][i])} → {number(windows['pruned'][i])}",
            )
            for i in order[:_WINDOWS_SHOWN]
        ]
        of = f", the worst {len(drawn)} of {len(rise)}" if len(drawn) < len(rise) else ""
        charts.append(bars(drawn, f"Rise of the NLL of each window, {name}{of}", "nats a token"))
        cells = [
            [
                i,
                number(windows["full"][i]),
                number(windows["pruned"][i]),
                number(rise[i], 3),
                begins[i] if begins else "",
            ]
            for i in order
        ]
        head = ["window", "NLL full", "NLL pruned", "rise, nats a token", "begins" if begins else ""]
        tables.append(
            folded(f"Windows of {name} as a table, worst first", el("div", table(head, cells), class_="stack"))
        )
    if not rows:
        return None
    rows = [row[:-1] for row in sorted(rows, key=lambda row: -row[-1])]
    head = ["text", "mean rise of NLL, nats a token (± s.e. over windows)", "suffers most"]
    return join([el("div", table(head, rows), class_="stack"), el("div", *charts, class_="figures"), *tables])


def _parts(record: Record, n_windows: int) -> list[tuple[str, Sequence[int]]]:
    """The calibration texts by name, and the windows of each."""
    whole = _texts(record)[0][0]
    domains = record["calibration"].get("domains") or []
    print_ = record.get("fingerprints", {}).get("calibration")
    of_window = print_.get("domains") if isinstance(print_, dict) else None
    if len(domains) < 2 or not of_window or len(of_window) != n_windows:
        return [(whole, range(n_windows))]
    return [
        (f"calibration ({spec_name(one['spec'])})", [i for i, text in enumerate(of_window) if text == number_])
        for number_, one in enumerate(domains)
    ]


def generations(record: Record) -> Html | None:
    """What both models go on with after the same prompts."""
    written = record.get("generations")
    if not written:
        return None
    made = []
    for one in written:
        made += [el("p", "Prompt: ", el("code", one["prompt"]))]
        made += [
            el(
                "div",
                *(
                    el("div", el("p", name, class_="soft"), el("blockquote", one[key]))
                    for name, key in (("full model", "full"), ("pruned model", "pruned"))
                ),
                class_="pair",
            )
        ]
    return join(made)


def axis_of(label: str, values: list[float]) -> Axis:
    """An axis for values, by logarithm where they are positive and far apart."""
    least = min(values)
    return Axis(label, log=label == "perplexity" and least > 0 and max(values) / least > _LOG_FROM)


def _texts(record: Record) -> list[tuple[str, Record]]:
    """The calibration text and the held-out one, by name."""
    named = [(f"calibration ({spec_name(record.get('calibration', {}).get('spec', 'unnamed'))})", record)]
    return named + ([("held-out text", record["heldout"])] if record.get("heldout") else [])


def _front(points: list[list[float]]) -> list[int]:
    """Indices of the points that no other one equals or beats in everything, less being better."""

    def beaten(i: int) -> bool:
        return any(
            other != points[i] and all(a <= b for a, b in zip(other, points[i], strict=True)) for other in points
        )

    return [i for i in range(len(points)) if not beaten(i)]


def _with_front(points: list[Point], steps: list[Step]) -> list[Series]:
    """The points of a chart, and a line through those on its own front."""
    chosen = [point for point, step in zip(points, steps, strict=True) if step.chosen]
    others = [point for point, step in zip(points, steps, strict=True) if not step.chosen]
    line = sorted((points[i] for i in _front([[point.x, point.y] for point in points])), key=lambda point: point.x)
    return [
        Series("front", line, 2, steps=True),
        Series("on the way", others, 0, line=False),
        Series("chosen", chosen, 1, line=False),
    ]


def _latency(record: Record, step: Step) -> float | None:
    """Milliseconds a token, measured at both ends and in between by parameters."""
    cost, params = record.get("cost"), step.params(record)
    if not cost or params is None:
        return None
    full, pruned = (1000 / max(float(cost[name]["decode_tok_s"]), 1e-9) for name in ("full", "pruned"))
    whole = int(record["params"]["full"])
    span = whole - (path(record)[-1].params(record) or whole)
    return full + (pruned - full) * (whole - params) / span if span else full
