"""Arguments and options that several commands take, and what commands share. Free of torch: the help needs no more."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import GameOptions
from layercoop_fast.inputs.options import DRAFT, OUTPUT, SEARCH, TEXT
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.system.stopping import STOPS, Stopped

# No square brackets in any help: typer takes them for markup.
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder (or a hub name).")]
Objective = Annotated[
    str,
    typer.Option(
        help="With several texts: mean (their weighted mean) or worst (the text whose loss rose most).",
        rich_help_panel=TEXT,
    ),
]
SamplerOption = Annotated[
    str,
    typer.Option(
        help="How masks are drawn: strata (as published, each mask by itself), two-stage, chains or subsets.",
        rich_help_panel=SEARCH,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of a table.", rich_help_panel=OUTPUT)
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="Write faster, with the same answers: blocks that a draft leaves out, written as for --mask, or search.",
        metavar="BLOCKS|DIR|search",
        rich_help_panel=DRAFT,
    ),
]

Options = TypeVar("Options", bound=GameOptions)


def check_drawing(sampling: Sampling) -> None:
    """Raise `RequestError` for cuts of a distribution from which nothing is drawn."""
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
        raise RequestError(
            "--top-k, --top-p and --min-p are about drawing, and a temperature of 0 draws nothing: give --temperature 1"
        )


def with_objective(options: Options, objective: str) -> Options:
    """Options with an objective over several texts; `RequestError` for an unknown one."""
    if objective not in ("mean", "worst"):
        raise RequestError(f"unknown objective {objective!r}: choose mean or worst")
    return options if objective == "mean" else replace(options, utility=f"{options.utility}:{objective}")


def check_distinct(**paths: Path | None) -> None:
    """Raise `RequestError` where one file is named for two things: the later would replace the earlier."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise RequestError(f"--{other} and --{name} are the same file, {path}: name two")


@contextmanager
def stopped_with(store: str | Path | None) -> Iterator[None]:
    """On Ctrl-C, or a signal, tell that the measured masks are kept, where there is a store."""
    try:
        yield
    except STOPS as stop:
        if store is None or not Path(store).exists():
            raise
        raise Stopped(
            f"The masks measured so far are kept in {store}: the same command goes on from there", stop
        ) from stop


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on a line of standard output."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
