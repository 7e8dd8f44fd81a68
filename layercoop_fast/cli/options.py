"""Options that several commands take, and what their values mean. Free of torch, like all that the help needs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layercoop_fast.errors import RequestError
from layercoop_fast.system.stopping import STOPS, Stopped

if TYPE_CHECKING:
    from layercoop_fast.runtime.sampling import Sampling

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder (or a hub name).")]
CalibrationOption = Annotated[
    list[str] | None,
    typer.Option(
        # No square brackets in any help: typer takes them for markup.
        help="FILE.txt, FILE.jsonl, hf:NAME/CONFIG/SPLIT (both may be left out), builtin (the default), "
        "builtin-heldout, builtin-docstrings, builtin-code or self; several times for several texts, each with "
        ":WEIGHT if wanted.",
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
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: one model over all GPUs.")]
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

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option(help="0: always the likeliest token; higher: bolder.")]
TopK = Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that reach this probability together.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens at least this fraction as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: what was said already becomes less likely.")]
FreshSeed = Annotated[int | None, typer.Option(help="Seed of what is drawn; by default a fresh one.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends an answer; repeatable.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on behind the token that ends a text.")]
DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="Write faster, with the same answers: blocks that a draft leaves out, in the forms of --mask, or search.",
        metavar="BLOCKS|DIR|search",
    ),
]
RuntimeDtype = Annotated[
    str, typer.Option("--dtype", help="Of the weights: auto (the checkpoint's own), float32, bfloat16, int8 or int4.")
]
RuntimeDevice = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="What computes: auto, native (C++, llama-shaped models) or transformers.")
]
KvMemory = Annotated[
    str | None,
    typer.Option("--kv-memory", help="Memory for keys and values, 1GiB for example; default a quarter free."),
]
KvDtype = Annotated[
    str,
    typer.Option(
        "--kv-dtype",
        help="Of keys and values in the native executor: float32, bfloat16, float16 or int8; auto is the weights' own, "
        "and float16 beside quantised ones.",
    ),
]

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}b": size for unit, size in list(_UNITS.items()) if unit in "kmgt" and unit}
_UNITS |= {f"{unit}ib": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}


def size_in_bytes(text: str | None, option: str = "--memory") -> int | None:
    """`4GiB`, `500MB` or `1073741824` in bytes; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise RequestError(f"{option} {text!r} is not a size: write 4GiB, 500MB or a number of bytes")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if size >= 2**63:
        raise RequestError(f"{option} {text!r} is more than any machine holds: write 4GiB, 500MB or a number of bytes")
    return int(size)


def sampling_of(
    temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, seed: int | None
) -> Sampling:
    """How tokens are chosen; `RequestError` for numbers without a meaning, and for cuts that choose nothing."""
    from layercoop_fast.runtime.sampling import Sampling

    found = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if found.greedy and (top_k or top_p < 1 or min_p):
        raise RequestError(
            "--top-k, --top-p and --min-p are about drawing, and a temperature of 0 draws nothing: give --temperature 1"
        )
    return found


def with_objective(utility: str, objective: str) -> str:
    """The name of a utility under an objective over several texts; `RequestError` for an unknown one."""
    if objective not in ("mean", "worst"):
        raise RequestError(f"unknown objective {objective!r}: choose mean or worst")
    return utility if objective == "mean" else f"{utility}:{objective}"


def check_distinct(**paths: Path | None) -> None:
    """Refuse one file for two things: the later would take the place of the earlier."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise RequestError(f"--{other} and --{name} are the same file, {path}: name two")


@contextmanager
def stopped_with(store: Path | None) -> Iterator[None]:
    """Say on Ctrl-C, or a signal, that what was measured is kept, where there is a store."""
    try:
        yield
    except STOPS as stop:
        if store is None or not store.exists():
            raise
        raise Stopped(
            f"The masks measured so far are kept in {store}: the same command goes on from there", stop
        ) from stop


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on a line of standard output."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
