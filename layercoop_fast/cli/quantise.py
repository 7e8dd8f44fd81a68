"""`layercoop-fast quantise`: a checkpoint's linear layers in 4 bits, before pruning or after."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.report.console import say


def quantise(
    model: Annotated[str, typer.Argument(help="Checkpoint folder; it is not changed.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    scheme: Annotated[str, typer.Option(help="nf4 (bitsandbytes) or int4 (torchao).")] = "nf4",
    dtype: Annotated[str, typer.Option(help="Type of the other weights: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Open the folder again and compare it before it counts as written."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Write a checkpoint in 4 bits, which `prune` and plain transformers open."""
    from layercoop_fast.export.quantising import quantise_checkpoint
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.card import card_of

    with Bars("quantising"):
        done = quantise_checkpoint(
            model,
            out,
            scheme,
            dtype=dtype,
            device=device,
            force=force,
            trust_remote_code=trust_remote_code,
            verify=verify,
            finish=lambda folder: card_of(folder, out),
        )
    if as_json:
        sys.stdout.write(json.dumps({**done, "out": str(out)}) + "\n")
        return
    left = f" (as they were: {', '.join(done['left'])})" if done["left"] else ""
    before = "" if done["bytes"]["full"] is None else f"{done['bytes']['full']:,} → "
    say(f"{scheme}{left}: {before}{done['bytes']['quantised']:,} bytes. Written to {out}")
