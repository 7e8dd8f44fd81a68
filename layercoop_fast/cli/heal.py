"""`layercoop-fast heal`: distillation of a pruned checkpoint from the full model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, print_json
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.inputs.options import MODEL, OUTPUT
from layercoop_fast.report.console import say
from layercoop_fast.system.stopping import STOPS, Stopped


@expanded()
def heal(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the pruned checkpoint; it is not changed.")],
    teacher: Annotated[str, typer.Option(help="The full model: a folder or a hub name.", rich_help_panel=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=OUTPUT)],
    request: HealRequest,
    as_json: AsJson = False,
) -> None:
    """Train a pruned checkpoint to predict as the full model does, and write it as a plain checkpoint."""
    from layercoop_fast.healing.heal import heal as run
    from layercoop_fast.healing.state import state_file
    from layercoop_fast.progress import Bars

    with Bars("opening the models") as bars:
        try:
            done = run(
                folder,
                teacher,
                out,
                on_progress=bars.update,
                on_look=lambda point: bars.say(f"layercoop-fast: {_told(point)}"),
                **vars(request),
            )
        except STOPS as stop:
            if not state_file(out).exists():
                raise
            raise Stopped(
                f"The state of the run is kept in {state_file(out)}: the same command with --resume goes on from there",
                stop,
            ) from stop
    if not done.wrote:
        return
    if as_json:
        print_json({"out": str(done.out), "healing": done.record})
        return
    for spec, nll in done.record["nll"].items():
        say(f"{spec}: perplexity {_perplexity(nll['before'])} before, {_perplexity(nll['after'])} after")
    why = "" if done.record["kept"] else f" The weights are as they were: {done.record['reason']}."
    say(f"{done.record['tokens']:,} tokens in {done.record['seconds']:.0f} s.{why} Written: {done.out}")


def _told(point: dict[str, Any]) -> str:
    """A point of the curve in one line."""
    loss = "" if point["loss"] is None else f"loss {point['loss']:.4f}, "
    kinds = ", ".join(f"{Path(spec).name} {_perplexity(nll)}" for spec, nll in point["choice"].items())
    kinds += "".join(f", {Path(spec).name} {_perplexity(nll)}" for spec, nll in point["watched"].items())
    best = " (best so far)" if point["best"] else ""
    return f"{point['tokens']:,} tokens, {point['seconds']:.0f} s: {loss}held-out perplexity {kinds}{best}"


def _perplexity(nll: float | None) -> str:
    return "not finite" if nll is None or nll > 700 else f"{math.exp(nll):.2f}"
