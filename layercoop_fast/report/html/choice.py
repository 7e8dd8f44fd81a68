"""Why these players were removed: values, interactions, what else was measured, and how good the forecast was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layercoop_fast.report.html.charts import Axis, Bar, Point, Series, bars, heat, xy
from layercoop_fast.report.html.markup import Html, el, folded, join, number, signed, table
from layercoop_fast.report.html.record import (
    NORMAL_95,
    Fit,
    Record,
    is_searchs_own,
    loss_unit,
    player_names,
    removed_players,
    utility,
    value_unit,
)

_STRONGEST = 3
_PAIRS_IN_TABLE = 40
# Forecasts that are drawn, the latest ones.
_FORECASTS = 600


def why(record: Record) -> Html | None:
    """A line for each removed player."""
    details, names, gone = record.get("details") or {}, player_names(record), removed_players(record)
    scores, fit = record.get("scores"), Fit.of(record)
    columns = ["goes"]
    rows: list[list[object]] = [[names[player]] for player in gone]
    if scores:
        columns.append(f"value, {value_unit(record)}")
        order = sorted(range(len(scores)), key=lambda player: math.inf if scores[player] is None else scores[player])
        for row, player in zip(rows, gone, strict=True):
            interval = _interval(record, player)
            shown = number(scores[player], 3)
            if interval is not None:
                shown += f" ({number(interval[0], 3)} to {number(interval[1], 3)})"
            row.append(f"{shown}; {_ordinal(order.index(player) + 1)} least of {len(scores)}")
    if fit is not None:
        columns += ["gain of putting it back (fit)", "strongest interactions (± s.e.)"]
        for row, player in zip(rows, gone, strict=True):
            row += [number(fit.marginal_without(player, gone), 3), _strongest(fit, player, names)]
    if "alternatives" in details and is_searchs_own(record):
        columns.append("best measured mask that keeps it")
        found = {one["keeps"]: one for one in details["alternatives"]}
        for row, player in zip(rows, gone, strict=True):
            row.append(_instead(found.get(player), details["loss"], gone, names))
    if "greedy_order" in details:
        columns.append("went as")
        turn = {player: i + 1 for i, player in enumerate(details["greedy_order"])}
        after = details["greedy_worths"]
        for row, player in zip(rows, gone, strict=True):
            place = turn.get(player)
            row.append(
                "not by the greedy search"
                if place is None
                else f"{_ordinal(place)}; worth then {number(after[place - 1])}"
            )
    finalists = _finalists(details, names)
    if len(columns) == 1:
        return finalists
    return join([el("div", table(columns, rows), class_="stack"), _runner_up(record, names, gone), finalists])


def _instead(found: Record | None, loss: float | None, gone: list[int], names: list[str]) -> str:
    if found is None or found["loss"] is None or loss is None:
        return "none was measured"
    other = [names[player] for player in found["removed"] if player not in gone]
    back = [names[player] for player in gone if player not in found["removed"]]
    sure = "" if found["better"] is None else f"; the better one on {found['better']:.0%} of resampled windows"
    verb = "go" if len(other) > 1 else "goes"
    return f"{', '.join(other)} {verb} instead of {', '.join(back)}: loss {signed(found['loss'] - loss)}{sure}"


def _runner_up(record: Record, names: list[str], gone: list[int]) -> Html | None:
    details = record.get("details") or {}
    if details.get("runner_up_loss") is None or details.get("loss") is None or not is_searchs_own(record):
        return None
    second = {
        "removed": details["runner_up"],
        "loss": details["runner_up_loss"],
        "better": details.get("runner_up_better"),
    }
    said = _instead(second, details["loss"], gone, names)
    stopped = f" The search ended because {details['stopped']}." if details.get("stopped") else ""
    return el(
        "p", f"Runner-up of all masks measured in full: {said}. Losses are in {loss_unit(record)}.{stopped} ",
        "Values are what a player is worth on average over all sizes; intervals are of 95 %.",
    )  # fmt: skip


def _finalists(details: Record, names: list[str]) -> Html | None:
    """The masks that were compared after their repair; the chosen one comes first."""
    if not details.get("finalists"):
        return None
    rows = [
        [
            " ".join(names[player] for player in one["removed"]),
            number(one["worth"]),
            number(one["repaired_worth"]) if one["kept"] else "a repair does not help",
        ]
        for one in details["finalists"]
    ]
    said = (
        "Each of the best measured masks was repaired, and the first one was chosen. The sections above are about the "
        "search."
    )
    return join([el("p", said), el("div", table(["goes", "worth", "worth repaired"], rows), class_="stack")])


def settled(record: Record) -> Html | None:
    """Which mask was the best on how many windows, and how certain that was."""
    found = (record.get("details") or {}).get("settled")
    if not found or not found["steps"]:
        return None
    names = player_names(record)
    rows = [
        [
            one["windows"],
            " ".join(names[player] for player in one["removed"]),
            number(one["loss"]),
            " ".join(names[player] for player in one["runner_up"]),
            number(one["runner_up_loss"]),
            "not known" if one["runner_up_better"] is None else f"{one['runner_up_better']:.0%}",
        ]
        for one in found["steps"]
    ]
    head = ["windows", "best", "loss", "runner-up", "its loss", "chance that it is better"]
    said = (
        f"Of the {found['finalists']} best masks that the search measured; wanted: a chance of {found['level']:.0%} at "
        f"most. It ended because: {found['stopped']}."
    )
    return join([el("div", table(head, rows), class_="stack"), el("p", said, class_="soft")])


def values(record: Record) -> Html | None:
    """A bar for each player."""
    scores, names, gone = record.get("scores"), player_names(record), set(removed_players(record))
    if not scores or all(score is None for score in scores):
        return None
    rows, cells = [], []
    for player, score in enumerate(scores):
        interval = _interval(record, player)
        low, high = interval or (None, None)
        text = number(score) if interval is None else f"{number(score)} ({number(low)} to {number(high)})"
        if score is not None:
            rows.append(Bar(names[player], score, f"{names[player]}: {text}", low, high, marked=player in gone))
        cells.append([names[player], text, "goes" if player in gone else "stays"])
    what = {"coop": "Shapley value", "official": "Published mean marginal"}.get(record["method"], "Score")
    title = f"{what} of every player; removed ones in the second colour"
    return el(
        "div",
        bars(rows, title, value_unit(record)),
        folded("As a table", table(["player", f"value, {value_unit(record)}", ""], cells)),
    )


def interactions(record: Record) -> Html | None:
    """The map of all pairs."""
    fit, names = Fit.of(record), player_names(record)
    if fit is None:
        return None
    n = len(names)
    cells = {(i, j): fit.pairs[i][j] for i in range(n) for j in range(n) if i != j}
    pairs = sorted(
        ((i, j) for i in range(n) for j in range(i + 1, n)), key=lambda pair: -abs(fit.pairs[pair[0]][pair[1]])
    )
    shown = [
        [f"{names[i]} and {names[j]}", signed(fit.pairs[i][j]), number(fit.errors[i][j], 2)]
        for i, j in pairs[:_PAIRS_IN_TABLE]
    ]
    unit = loss_unit(record)
    rest = f"The {len(shown)} strongest of {len(pairs)} pairs as a table; all are in layercoop.json"
    return el(
        "div",
        heat(names, cells, "What removing two players costs beyond each alone", unit=unit),
        folded(rest, table(["pair", unit, "± s.e."], shown)),
    )


def marginals(record: Record) -> Html | None:
    """What removing a player costs, against the number of players removed before it."""
    fit, names, gone = Fit.of(record), player_names(record), removed_players(record)
    if fit is None or not gone:
        return None
    last = len(gone) - 1
    others = [player for player in _by_value(fit) if player not in gone][: max(3, len(gone))]
    ends = [0, last] if last else [0]

    def said(player: int, size: int, value: float) -> str:
        return f"{names[player]}, {size} others gone: {number(value, 3)}"

    def lines(players: Sequence[int], colour: int) -> list[Series]:
        return [
            Series("", [Point(k, value := fit.marginal(p, k), said(p, k, value)) for k in ends], colour)
            for p in players
        ]

    drawn = lines(others, 0) + lines(gone, 1)
    unit = loss_unit(record)
    rows = [
        [names[p], *(number(fit.marginal(p, k), 3) for k in ends), "goes" if p in gone else "stays"]
        for p in _by_value(fit)
    ]
    title = "Marginals by size: loss by removing one more player; the least valuable, removed ones in the second colour"
    return el(
        "div",
        xy(drawn, Axis("other players removed before", whole=True), Axis(unit), title),
        folded("As a table, all players", table(["player", *(f"after {k}, {unit}" for k in ends), ""], rows)),
        el("p", "Computed on the surrogate, in which a marginal is a linear function of the size.", class_="soft"),
    )


def forecasts(record: Record) -> Html | None:
    """What the surrogate expected of each mask, and what was then measured."""
    found = (record.get("details") or {}).get("forecasts")
    if not found or not found["measured"]:
        return None
    columns = (found[name] for name in ("n_removed", "expected", "stderr", "measured"))
    rows = list(zip(*columns, strict=True))
    wanted = len(removed_players(record))
    as_worth = utility(record) == "ppl_ratio"
    what = "worth" if as_worth else f"loss, {loss_unit(record)}"
    points: dict[bool, list[Point]] = {True: [], False: []}
    cells = []
    for size, expected, stderr, measured in rows[-_FORECASTS:]:
        y, x, error = expected, measured, stderr
        if as_worth:
            y, x, error = math.exp(-expected), math.exp(-measured), math.exp(-expected) * stderr
        text = f"{size} removed: expected {number(y)} ± {number(error, 2)}, measured {number(x)}"
        points[size == wanted].append(Point(x, y, text, NORMAL_95 * error))
        cells.append([size, number(y), number(error, 2), number(x)])
    series = [
        Series(name, points[key], colour, line=False)
        for name, key, colour in (("fewer removed", False, 0), (f"{wanted} removed", True, 1))
        if points[key]
    ]
    inside = sum(abs(measured - expected) <= NORMAL_95 * stderr for _, expected, stderr, measured in rows)
    errors = sorted(abs(measured - expected) for _, expected, _, measured in rows)
    typical = f"{number(errors[len(errors) // 2], 3)} {loss_unit(record)}"
    said = (
        f"{len(rows)} masks were predicted before they were measured: median error of the loss {typical}; "
        f"{inside / len(rows):.0%} within the 95 % interval."
    )
    labels = [f"{which} {what}" for which in ("measured", "predicted")]
    title = f"Predicted against measured {what}"
    return el(
        "div",
        xy(series, Axis(labels[0]), Axis(labels[1]), title, diagonal=True),
        el("p", said),
        folded(f"As a table ({len(cells)} of {len(rows)})", table(["removed", labels[1], "± s.e.", labels[0]], cells)),
    )


def _by_value(fit: Fit) -> list[int]:
    return sorted(range(len(fit.values)), key=fit.values.__getitem__)


def _strongest(fit: Fit, player: int, names: list[str]) -> str:
    others = sorted((other for other in range(len(names)) if other != player), key=lambda o: -abs(fit.pairs[player][o]))
    return ", ".join(
        f"{names[o]}: {signed(fit.pairs[player][o], 2)} ± {number(fit.errors[player][o], 2)}"
        for o in others[:_STRONGEST]
    )


def _interval(record: Record, player: int) -> tuple[float, float] | None:
    """The 95 % interval of a player's value, where its standard error is known."""
    errors = (record.get("details") or {}).get("values_stderr")
    value = record["scores"][player]
    if not errors or errors[player] is None or value is None:
        return None
    return value - NORMAL_95 * errors[player], value + NORMAL_95 * errors[player]


def _ordinal(place: int) -> str:
    if 10 < place % 100 < 14:
        return f"{place}th"
    return f"{place}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(place % 10, 'th') }"
