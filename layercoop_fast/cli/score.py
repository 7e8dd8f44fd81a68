"""`layercoop-fast score`: masks scored on tasks of the LM Evaluation Harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, Force, Model
from layercoop_fast.inputs.options import OUTPUT, REMOVE, TEXT
from layercoop_fast.tasks.options import EngineOptions, TaskOptions


@expanded()
def score(
    model: Model,
    tasks: TaskOptions,
    engine: EngineOptions,
    masks: Annotated[
        str,
        typer.Option(
            help="What each mask leaves out, by name: blocks, for example a=13-18,b=3.attn, or a folder that prune "
            "wrote; or a .npy of bool, masks x blocks. The full model is scored with them.",
            metavar="NAME=BLOCKS|DIR[@N],...|FILE.npy",
            rich_help_panel=REMOVE,
        ),
    ] = "full",
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare with the full model of this .json, which score --out wrote of another model on the same "
            "tasks: a repaired folder with its original.",
            metavar="FILE.json",
            rich_help_panel=TEXT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the scores to this .json as well, with those of every document.", rich_help_panel=OUTPUT
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Score many masks of a model on tasks of the LM Evaluation Harness, in one run."""
    from layercoop_fast.files import check_target, written_whole
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.scores import show_scores
    from layercoop_fast.tasks.loading import require_harness
    from layercoop_fast.tasks.masks import named_masks
    from layercoop_fast.tasks.reference import Reference
    from layercoop_fast.tasks.score import score as run

    require_harness()
    given = named_masks(masks)
    reference = None if against is None else Reference.read(against)
    if out is not None:
        check_target(out, force=force)
    with Bars("reading the tasks") as bars:
        record = run(model, given, tasks, engine, against=reference, progress=bars.update)
    if out is not None:
        with written_whole(out, force=force) as made:
            made.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(record, allow_nan=False))
    else:
        show_scores(record)
