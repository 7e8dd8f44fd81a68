"""What players are worth, for people (a table with bars), for programs (JSON) and for NumPy (`values.npz`)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from layercoop_fast.files import written_whole
from layercoop_fast.report.console import plain_console
from layercoop_fast.report.tables import bar
from layercoop_fast.search.base import finite_or_none

if TYPE_CHECKING:
    from layercoop_fast.search.valuation import Valuation

LEVEL = 0.95
_COLUMNS = 62  # what the other columns take of a line; the rest is for bars
_STRONGEST = 10  # pairs of players shown
_FLOATS = {"values", "stderr", "low", "high", "interactions"}


def show_valuation(found: Valuation) -> None:
    """Print the players from least to most valuable with intervals and bars, then how certain that is."""
    console = plain_console()
    values, (low, high) = found.intervals.values, found.intervals.interval(LEVEL)
    unsettled = found.intervals.unsettled(LEVEL)
    order = np.argsort(values, kind="stable")
    table = Table(title=f"Shapley values ({found.method}), {_unit(found)}: least valuable first")
    width = min(40, max(10, console.width - _COLUMNS))
    for name in ("player", "value", f"{LEVEL:.0%} interval", "not distinct from"):
        table.add_column(name, justify="right")
    table.add_column("")
    largest = float(np.abs(values).max()) or 1.0
    for player in order:
        rivals = [j if i == player else i for i, j in unsettled if player in (i, j)]
        table.add_row(
            found.players[player],
            f"{values[player]:.4f}",
            f"{low[player]:.4f} to {high[player]:.4f}",
            _shown([found.players[rival] for rival in rivals]),
            bar(float(values[player]), largest, width),
        )
    console.print(table)
    for line in _remarks(found, len(unsettled)):
        console.print(line, highlight=False, soft_wrap=True)
    exhaustive = found.pairs_from == "surrogate"
    if found.interactions is not None and exhaustive and found.surrogate.quality.epochs == 0:
        console.print(
            "no interactions: the network was not better than a linear surrogate, which has none", soft_wrap=True
        )
    elif found.interactions is not None:
        console.print(_pairs_table(found.interactions, found.players, found.pairs_from))
    if found.best:
        console.print(_best_table(found))


def valuation_json(found: Valuation) -> dict[str, Any]:
    """A valuation as an object for JSON; NaN and infinity are None."""
    between, (low, high) = found.intervals, found.intervals.interval(LEVEL)
    quality = asdict(found.surrogate.quality)
    del quality["history"]
    record: dict[str, Any] = {
        "players": found.players,
        "method": found.method,
        "unit": _unit(found),
        "values": _plain(between.values),
        "stderr": _plain(between.stderr),
        "stderr_by_source": {name: _plain(getattr(between, name)) for name in ("sampling", "ensemble", "text")},
        "level": LEVEL,
        "low": _plain(low),
        "high": _plain(high),
        "order": np.argsort(between.values, kind="stable").tolist(),
        "unsettled": [list(pair) for pair in between.unsettled(LEVEL)],
        "text_counts": found.text_counts,
        "n_masks": len(found.surrogate.targets),
        "n_dropped": found.n_dropped,
        "fit": _finite(quality),
    }
    if found.interactions is not None or found.best:
        record["pairs_from"] = found.pairs_from
    if found.interactions is not None:
        record["interactions"] = [_plain(row) for row in found.interactions]
    if found.best:
        record["best_per_size"] = [
            {"kept": kept, "removed": removed, "worth": finite_or_none(worth)}
            for kept, removed, worth in _best_rows(found)
        ]
    return record


def save_values(record: dict[str, Any], path: Path, *, force: bool = False) -> None:
    """Write `values.npz`, whole or not at all, from a record as `valuation_json` makes it (or one of fewer entries).

    `values`, `stderr`, `low`, `high` float64 [n], `stderr_by_source` float64 [3, n] (sampling, ensemble, text), `order`
    int64 [n], `unsettled` int64 [pairs, 2], `interactions` float64 [n, n], `best_masks` bool [n + 1, n] and
    `best_worths` float64 [n + 1]; everything else is JSON text in `about`.
    """
    about = dict(record)
    arrays: dict[str, Any] = {}
    for name in _FLOATS & about.keys():
        arrays[name] = np.array(about.pop(name), dtype=np.float64)  # None becomes NaN
    if "stderr_by_source" in about:
        arrays["stderr_by_source"] = np.array(list(about.pop("stderr_by_source").values()), dtype=np.float64)
    arrays["order"] = np.array(about.pop("order"), dtype=np.int64)
    if "unsettled" in about:
        arrays["unsettled"] = np.array(about.pop("unsettled"), dtype=np.int64).reshape(-1, 2)
    if "best_per_size" in about:
        best = about.pop("best_per_size")
        arrays["best_worths"] = np.array([row["worth"] for row in best], dtype=np.float64)
        arrays["best_masks"] = np.ones((len(best), len(arrays["values"])), dtype=np.bool_)
        for mask, row in zip(arrays["best_masks"], best, strict=True):
            mask[row["removed"]] = False
    with written_whole(path, force=force) as made, made.open("wb") as file:
        np.savez_compressed(file, **arrays, about=np.array(json.dumps(about, allow_nan=False)))


def _remarks(found: Valuation, n_unsettled: int) -> list[str]:
    """Lines below the table: what the intervals cover, which orders are open, and how good the surrogate is."""
    quality, masks = found.surrogate.quality, found.surrogate.masks
    n, kept = masks.shape[1], masks.sum(axis=1)
    sources = ["the masks measured"] + ["the calibration text"] * found.text_counts
    sources += ["the orders sampled"] * (found.method == "permutation")
    pairs = n * (n - 1) // 2
    lines = [
        f"intervals are from {', '.join(sources[:-1])}{' and ' if len(sources) > 1 else ''}{sources[-1]}"
        + ("" if found.text_counts else " (not the text: one window, or a worth that is not a mean over windows)"),
        f"order not settled at {LEVEL:.0%}: {n_unsettled} of {pairs} pairs"
        + (" (not distinct from: the closest of them)" if n_unsettled else ""),
    ]
    if quality.inside.n_pairs:
        outside = ", ".join(f"{size}: {r2:.2f}" for size, r2 in quality.outside.items())
        lines.append(
            f"surrogate: R² {quality.inside.r2:.3f} on {quality.inside.n_pairs} masks held out (pairwise ridge "
            f"{quality.pairwise:.3f}, linear {quality.linear:.3f})"
            + (f"; on sizes left out whole, {outside}" if outside else "")
        )
    else:
        lines.append(f"surrogate: a linear ridge, not validated: none of {len(masks)} masks could be held out")
    lines.append(f"{len(masks)} masks used; {found.n_dropped} dropped (worth not finite)")
    if kept.min() > 1 or kept.max() < n - 1:
        lines.append(
            f"note: the masks measured keep {kept.min()} to {kept.max()} of {n} players. A Shapley value weighs "
            "every size equally, so the surrogate extrapolates; measure masks of the other sizes to see how well"
        )
    return lines


def _pairs_table(interactions: NDArray[np.float64], players: list[str], of: str) -> Table:
    """The pairs with the largest interactions, positive or negative."""
    first, second = np.triu_indices(len(interactions), 1)
    between = interactions[first, second]
    strongest = np.argsort(-np.abs(between), kind="stable")[:_STRONGEST]
    table = Table(title=f"Shapley interactions on the {of}, strongest first")
    table.add_column("players", justify="right")
    table.add_column("index", justify="right")
    table.add_column("")
    largest = float(np.abs(between).max(initial=0.0)) or 1.0
    for pair in strongest:
        value = float(between[pair])
        table.add_row(f"{players[first[pair]]} {players[second[pair]]}", f"{value:.4f}", bar(value, largest, 20))
    return table


def _best_table(found: Valuation) -> Table:
    """The best mask of each size, by what it removes."""
    table = Table(title=f"best mask of each size, on the {found.pairs_from}")
    table.add_column("kept", justify="right")
    table.add_column("predicted worth", justify="right")
    table.add_column("removed")
    for kept, removed, worth in reversed(_best_rows(found)):
        table.add_row(str(kept), f"{worth:.4g}", " ".join(found.players[player] for player in removed))
    return table


def _best_rows(found: Valuation) -> list[tuple[int, list[int], float]]:
    """For each size its best mask: how many it keeps, which it removes, and its worth (not on the scale of the fit)."""
    rows = []
    for best in found.best:
        mask, worth = best.masks[0], found.surrogate.link.back(best.worths[:1])[0]
        rows.append((int(mask.sum()), np.flatnonzero(~mask).tolist(), float(worth)))
    return rows


def _unit(found: Valuation) -> str:
    return "log worth" if found.surrogate.link.scale == "log" else "worth"


def _shown(players: list[str], most: int = 4) -> str:
    shown = " ".join(players[:most])
    return f"{shown} +{len(players) - most}" if len(players) > most else shown


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [finite_or_none(value) for value in values]


def _finite(value: Any) -> Any:
    """The same tree with None for floats that JSON cannot write."""
    if isinstance(value, dict):
        return {key: _finite(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(of) for of in value]
    return finite_or_none(value) if isinstance(value, float) else value
