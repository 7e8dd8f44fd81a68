"""`layercoop-fast card`: the model card of what `prune` wrote, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.options import AsJson, print_json
from layercoop_fast.report.console import say


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that prune wrote.")],
    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="The hub's name of the model that was pruned.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="The identifier of its license, for example apache-2.0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card (README.md) of a pruned checkpoint again, from its layercoop.json."""
    from layercoop_fast.report.card import write_card

    written = write_card(folder, base_model=base_model, license=license)
    if as_json:
        print_json({"out": str(written)})
    else:
        say(f"written: {written}")
