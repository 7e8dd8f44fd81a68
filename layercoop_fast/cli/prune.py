"""`layercoop-fast prune`: from a checkpoint to a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, Model, Objective, print_json, stopped_with, with_objective
from layercoop_fast.inputs.options import OUTPUT
from layercoop_fast.pruning.request import PruneRequest


@expanded()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=OUTPUT)],
    request: PruneRequest,
    objective: Objective = "mean",
    as_json: AsJson = False,
) -> None:
    """Remove layers from a checkpoint and write what is left as a plain checkpoint."""
    from layercoop_fast.cli.pruned import show_pruned
    from layercoop_fast.progress import Bars
    from layercoop_fast.pruning.prune import prune as run

    request = with_objective(request, objective)
    with stopped_with(request.store), Bars("opening the model") as bars:
        done = run(model, out, on_progress=bars.update, **vars(request))
    if as_json:
        print_json({"out": str(done.out), **done.record})
    else:
        show_pruned([done])
