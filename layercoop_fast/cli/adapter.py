"""`layercoop-fast adapter`: a LoRA adapter of the full model, renumbered onto a pruned one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.options import AsJson, Force, print_json
from layercoop_fast.report.console import say


def adapter(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder that peft wrote; it is not changed.")],
    pruned: Annotated[Path, typer.Option("--from", metavar="DIR", help="The pruned model: a folder that prune wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take an adapter whose config names another base model.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Renumber a LoRA adapter of the full model onto a pruned one; what it changes in removed layers is left out."""
    from layercoop_fast.export.adapter import renumber_adapter

    done = renumber_adapter(adapter, pruned, out, any_base=any_base, force=force)
    if as_json:
        print_json({**asdict(done), "out": str(done.out)})
    else:
        say(
            f"{done.modules['full']} → {done.modules['pruned']} modules, of {len(done.layers['full'])} → "
            f"{len(done.layers['pruned'])} layers. Written to {done.out}"
        )
