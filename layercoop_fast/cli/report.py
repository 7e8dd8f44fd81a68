"""`layercoop-fast report`: the report of what `prune` wrote, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.options import AsJson, Force, print_json
from layercoop_fast.report.console import say


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that prune wrote.")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: DIR/report.html, replaced.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of a pruned checkpoint, one HTML file, from its layercoop.json."""
    from layercoop_fast.files import check_target, written_whole
    from layercoop_fast.report.html.page import report_page
    from layercoop_fast.report.html.record import load_record

    target = folder / "report.html" if out is None else out
    record = load_record(folder)
    check_target(target, force=force or out is None)
    made = report_page(record)
    with written_whole(target, force=force or out is None) as place:
        place.write_text(made, encoding="utf-8")
    if as_json:
        print_json({"out": str(target), "bytes": target.stat().st_size})
    else:
        say(f"written: {target}")
