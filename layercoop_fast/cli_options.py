"""Options that several commands take, and what their values mean. Free of torch, like all that the help needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.errors import RequestError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder (or a hub name).")]
CalibrationOption = Annotated[
    list[str] | None,
    typer.Option(
        help="FILE.txt, FILE.jsonl, hf:NAME[/CONFIG][/SPLIT], builtin (the default), builtin-heldout, "
        "builtin-docstrings, builtin-code or self; several times for several texts, each with :WEIGHT if wanted.",
        metavar="SPEC[:WEIGHT]",
    ),
]
Objective = Annotated[
    str, typer.Option(help="Over several texts: their weighted mean, or worst, the one whose loss rose most.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Put the text into turns through the model's chat template.")]
Utility = Annotated[
    str,
    typer.Option(
        help="Worth of a mask: ppl_ratio, nll, kl or blend:SHARE (of NLL, the rest KL) of text; of items accuracy, "
        "accuracy_norm, margin or margin_norm, with options from a FILE.jsonl or cut from any text."
    ),
]
Players = Annotated[
    str, typer.Option(help="What one bit of a mask removes: layers, sublayers, or a .json file of groups.")
]
WindowsOption = Annotated[int, typer.Option(help="Calibration windows of each text, or items to cut from one.")]
Tokens = Annotated[int, typer.Option(help="Tokens of a window, or of an item that is cut.")]
Shots = Annotated[int, typer.Option(help="Items that are examples before all others and are not scored.")]
ShareContext = Annotated[
    bool,
    typer.Option(
        "--share-context/--no-share-context",
        help="Compute what the options of items share once, or every option with its context by itself.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's own.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Memory = Annotated[
    str | None, typer.Option(help="Memory for stored states, 4GiB for example; default a quarter of what is free.")
]
Blocks = Annotated[str | None, typer.Option(help="Dotted path of the block list, where it is not found by itself.")]
BlockPath = Annotated[str, typer.Option(help="auto: fast blocks where they fit, on the CPU; hf: the model's own only.")]
ScoreEvery = Annotated[
    int, typer.Option(min=1, help="Score every N-th position of a window, the rest being context: cheaper, noisier.")
]
SamplerOption = Annotated[
    str, typer.Option(help="How masks are drawn: strata (published, each alone), two-stage, chains or subsets.")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Keep measured masks in this file, and take known ones from it.")
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers", help="Measure on N local processes, or on a Ray cluster: ray or ray:HOST:PORT.", metavar="N|ray"
    ),
]
Tolerant = Annotated[bool, typer.Option("--tolerant", help="Take workers on unlike machines; fingerprints say so.")]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Read blocks from the checkpoint's files when they are used, two in memory at a time: for models larger "
        "than memory.",
    ),
]
RepairText = Annotated[
    list[str] | None,
    typer.Option(
        help="Text to fit a repair to, one kind each; repeatable. Default: the calibration text, builtin, "
        "builtin-docstrings and builtin-code."
    ),
]
RepairTokens = Annotated[int, typer.Option(help="Tokens to fit a repair to, over all its texts.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")]


def with_objective(utility: str, objective: str) -> str:
    """The name of a utility under an objective over several texts; `RequestError` for an unknown one."""
    if objective not in ("mean", "worst"):
        raise RequestError(f"unknown objective {objective!r}: choose mean or worst")
    return utility if objective == "mean" else f"{utility}:{objective}"
