"""`layercoop-fast mergekit`: a pruned model as a MergeKit recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.options import AsJson, Force, print_json
from layercoop_fast.report.console import say


def mergekit(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that prune wrote.")],
    out: Annotated[Path, typer.Option(help="The YAML file to write.")],
    base_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or hub name of the base. Default: what was pruned.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the MergeKit recipe (passthrough) that makes a pruned model of its base."""
    from layercoop_fast.export.mergekit import write_passthrough

    kept = write_passthrough(folder, out, base_model=base_model, force=force)
    if as_json:
        print_json({"out": str(out), "kept": kept})
    else:
        say(f"{len(kept)} layers kept. Written to {out}: mergekit-yaml {out} MERGED")
