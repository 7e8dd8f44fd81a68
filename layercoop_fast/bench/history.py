"""Runs of the benchmarks over time: one JSON line a run, and a page that plots how many times slower others are.

Absolute seconds of different machines cannot be compared, ratios within a run can: the page plots those.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.bench.results import OURS, Results
from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole
from layercoop_fast.inputs.text import as_saved, read_json_lines

SCHEMA = 1
# Of a plot, in pixels.
_WIDTH, _HEIGHT = 160, 36


@dataclass(frozen=True)
class Run:
    """A run of the benchmarks, without its raw seconds.

    Attributes:
        label: of the version that ran.
        day: on which it was recorded, as YYYY-MM-DD.
        machine: processor and number of cores.
        settings: what it ran with.
        medians: median seconds by figure ("folder: name") and way.
    """

    label: str
    day: str
    machine: str
    settings: dict[str, Any]
    medians: dict[str, dict[str, float]]

    @classmethod
    def of(cls, results: Results) -> Run:
        """What is kept of a run, under the version of this package that ran, today."""
        versions = results.machine.get("versions") or {}
        medians = {
            f"{figure.folder}: {figure.name}": {way: figure.median(way) for way in figure.ways}
            for figure in results.figures
        }
        return cls(
            str(versions.get("layercoop-fast", "unknown")),
            datetime.date.today().isoformat(),
            f"{results.machine.get('processor')}, {results.machine.get('cores')} cores",
            dict(results.settings),
            medians,
        )

    @classmethod
    def from_json(cls, content: Any) -> Run:
        """The run that a line holds. Raises `RequestError` where it holds none."""
        with as_saved("no run", "the benchmarks' record wrote nothing like it"):
            if content["schema"] != SCHEMA:
                raise RequestError(f"it has schema {content['schema']}: this version reads schema {SCHEMA}")
            medians = {
                str(figure): {str(way): _positive(seconds) for way, seconds in ways.items()}
                for figure, ways in content["medians"].items()
            }
            label, day, machine = (str(content[name]) for name in ("label", "day", "machine"))
            return cls(label, day, machine, dict(content["settings"]), medians)

    def line(self) -> str:
        """A line of the history."""
        return json.dumps({"schema": SCHEMA, **self.__dict__}, allow_nan=False)


def read_history(path: Path) -> list[Run]:
    """The runs of a file, in order; none where it does not exist. Raises `RequestError` for a line that is no run."""
    return [run for _, run in read_json_lines(str(path), Run.from_json, "runs")] if path.exists() else []


def record(results: Results, path: Path) -> list[Run]:
    """Append a run to a file, which is written whole or not at all, and return all its runs.

    Raises `RequestError` for a file that is no history.
    """
    runs = [*read_history(path), Run.of(results)]
    with written_whole(path, force=True) as made:
        made.write_text("".join(f"{run.line()}\n" for run in runs), encoding="utf-8")
    return runs


def page(runs: Sequence[Run]) -> str:
    """The history as Markdown: a table of the runs, and for each figure others ÷ ours in the last run and over time."""
    lines = ["# History of the benchmarks", "", "Others' time over ours in one run; above 1 ours is faster.", ""]
    lines += ["| run | version | day | machine |", "|---|---|---|---|"]
    lines += [f"| {number} | {run.label} | {run.day} | {run.machine} |" for number, run in enumerate(runs, 1)]
    lines += ["", "| figure | way | last | over all runs |", "|---|---|---|---|"]
    for figure in dict.fromkeys(figure for run in runs for figure in run.medians):
        ways = dict.fromkeys(way for run in runs for way in run.medians.get(figure, ()) if way != OURS)
        for way in ways:
            ratios = [_ratio(run.medians.get(figure, {}), way) for run in runs]
            there = [ratio for ratio in ratios if ratio is not None]
            if there:
                lines.append(f"| {figure} | {way} | {there[-1]:.2f} | {_plot(ratios)} |")
    return "\n".join(lines) + "\n"


def _ratio(ways: dict[str, float], way: str) -> float | None:
    return ways[way] / ways[OURS] if way in ways and OURS in ways else None


def _plot(ratios: Sequence[float | None]) -> str:
    """A line through the ratios over the runs, from 0 up, and a dashed one at 1: SVG in one line."""
    most = max([1.0, *(ratio for ratio in ratios if ratio is not None)]) * 1.1
    step = _WIDTH / max(1, len(ratios) - 1)
    points = [(step * number, _HEIGHT * (1 - ratio / most)) for number, ratio in enumerate(ratios) if ratio is not None]
    line = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.0f}" cy="{y:.1f}" r="2.5" fill="#0f766e"/>' for x, y in points)
    one = _HEIGHT * (1 - 1 / most)
    return (
        f'<svg viewBox="-4 -4 {_WIDTH + 8} {_HEIGHT + 8}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f'<path d="M0 {one:.1f} H{_WIDTH}" stroke="#9aa5b1" stroke-dasharray="4 4"/>'
        f'<polyline points="{line}" fill="none" stroke="#0f766e" stroke-width="2"/>{dots}</svg>'
    )


def _positive(seconds: Any) -> float:
    if not 0 < float(seconds) < float("inf"):
        raise ValueError("no seconds")
    return float(seconds)
