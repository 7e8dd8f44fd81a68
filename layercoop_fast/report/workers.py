"""What cutting masks for many workers costs, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from layercoop_fast.report.console import plain_console
from layercoop_fast.workers.cut import Sharing


def show_sharing(cuts: Sequence[Sharing]) -> None:
    """Print one row for each number of workers."""
    table = Table(title="shared work that is left when masks are cut for workers")
    for name in ("workers", "tasks", "layer evaluations", "÷ one worker", "busy, all alike"):
        table.add_column(name, justify="right")
    for cut in cuts:
        table.add_row(
            f"{cut.workers:,}", f"{cut.tasks:,}", f"{cut.evaluations:,}", f"{cut.over_one:.4f}", f"{cut.busy:.1%}"
        )
    plain_console().print(table)
