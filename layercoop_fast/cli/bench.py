"""`layercoop-fast bench`: run the benchmarks of the source tree, or compare what two runs measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layercoop_fast.cli.options import AsJson, Force, print_json
from layercoop_fast.errors import RequestError

if TYPE_CHECKING:
    from layercoop_fast.bench.results import Results

COMPARE = "compare"
RECORD = "record"


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE...] | cpu | gpu | compare A.json B.json | record A.json",
            help="Suites to run (all of them if none is named); cpu and gpu measure this machine's.",
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full/--quick", help="Sizes of published figures, or small ones; with cpu and gpu: what takes long too."
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder. Default: the small real model.")] = None,
    folder: Annotated[Path | None, typer.Option(help="The benchmarks folder of a clone.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON to write after each suite: machine, versions, raw samples; with record: the history."),
    ] = None,
    force: Force = False,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="With cpu and gpu: run their code on tiny sizes, without a GPU.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks and print each figure with its alternatives, show what changed, or add a run to a history."""
    from layercoop_fast.bench.running import (
        IN_PARTS,
        MachineRun,
        benchmarks_folder,
        is_begun,
        run_benchmarks,
        run_in_parts,
    )
    from layercoop_fast.bench.tables import show_results
    from layercoop_fast.files import check_target

    names = suites or []
    if names and names[0] == COMPARE:
        _compare(names[1:], as_json=as_json)
        return
    if names and names[0] == RECORD:
        _record(names[1:], out or Path("bench-history.jsonl"))
        return
    if what := next((name for name in names if name in IN_PARTS), None):
        out = out or Path(f"bench-{what}.json")
        if not is_begun(out, what):  # one that is there is continued
            check_target(out, force=force)
        run = MachineRun(tiny=tiny, long=full, afresh=force)
        found = run_in_parts(benchmarks_folder(folder), names, out, run, quiet=as_json)
        if as_json:
            print_json(found)
        return
    if tiny:
        raise RequestError("--tiny is for bench cpu and bench gpu: leave it out")
    if out is not None:
        check_target(out, force=force)

    def keep(suite: Results, so_far: Results) -> None:
        """Show and write what is there, so that a run that is stopped has not been for nothing."""
        if out is not None:
            so_far.save(out, force=True)
        if not as_json:
            show_results(suite)

    size = "full" if full else "quick"
    results = run_benchmarks(benchmarks_folder(folder), names, size=size, model=model, on_suite=keep)
    if as_json:
        print_json(results.as_json())


def _compare(files: Sequence[str], *, as_json: bool) -> None:
    from layercoop_fast.bench.comparing import compare, differing_machines
    from layercoop_fast.bench.results import Results
    from layercoop_fast.bench.tables import show_changes

    if len(files) != 2:
        raise RequestError("compare takes two files: layercoop-fast bench compare A.json B.json")
    first, second = (Results.load(Path(file)) for file in files)
    changes = compare(first, second)
    if not changes:
        raise RequestError("the two files have no figure in common: nothing can be compared")
    differing = differing_machines(first, second)
    if as_json:
        print_json({"changes": [asdict(change) for change in changes], "differing": differing})
    else:
        show_changes(changes, differing)


def _record(files: Sequence[str], history: Path) -> None:
    from layercoop_fast.bench.history import record
    from layercoop_fast.bench.results import Results

    if len(files) != 1:
        raise RequestError("record takes one file: layercoop-fast bench record A.json --out history.jsonl")
    runs = record(Results.load(Path(files[0])), history)
    typer.echo(f"{runs[-1].label}, {runs[-1].day}: run {len(runs)} of {history}")
