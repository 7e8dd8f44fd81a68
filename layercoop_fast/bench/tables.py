"""What the benchmarks measured, and what changed, as tables for people on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from layercoop_fast.bench.comparing import Change
from layercoop_fast.bench.results import OURS, Results
from layercoop_fast.report.console import plain_console


def show_results(results: Results, console: Console | None = None) -> None:
    """Print a row for each way: median time, spread, rounds, and its time as a multiple of ours."""
    console = console or plain_console()
    table = Table(title=f"{results.machine.get('processor')}, {results.machine.get('cores')} cores")
    table.add_column("figure")
    table.add_column("way")
    for name in ("median", "± %", "rounds", "÷ ours"):
        table.add_column(name, justify="right")
    for figure in results.figures:
        for row, way in enumerate(sorted(figure.ways, key=lambda name: (name != OURS, figure.median(name)))):
            ratio = figure.ratio(way)
            table.add_row(
                f"{figure.folder}: {figure.name}" if row == 0 else "",
                way,
                seconds_text(figure.median(way)),
                f"{100 * figure.spread(way):.1f}",
                str(len(figure.ways[way])),
                "" if way == OURS or ratio is None else f"{ratio:.2f}",
            )
    console.print(table)


def show_changes(changes: Sequence[Change], differing: Sequence[str]) -> None:
    """Print a row for each way that both runs timed, and a line where the two machines differ."""
    console = plain_console()
    table = Table(title="second run ÷ first run")
    for name in ("figure", "way"):
        table.add_column(name)
    for name in ("ratio", "99 % interval"):
        table.add_column(name, justify="right")
    table.add_column("")
    for change in changes:
        interval = f"{change.low:.3f} to {change.high:.3f}"
        table.add_row(change.figure, change.way, f"{change.ratio:.3f}", interval, change.verdict)
    console.print(table)
    if differing:
        console.print(
            f"The two runs differ in {', '.join(differing)}: only ratios within a run can be compared.",
            highlight=False,
            soft_wrap=True,
        )


def seconds_text(seconds: float) -> str:
    """Seconds in s, ms, µs or ns, with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
