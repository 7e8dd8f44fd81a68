"""The command line. Each command reads its arguments and calls the library; torch is loaded inside a command only."""

from __future__ import annotations

from typing import Annotated

import typer

from layercoop_fast.cli.bench import bench
from layercoop_fast.cli.chat import chat as start_chat
from layercoop_fast.cli.compare import compare
from layercoop_fast.cli.cut import cut
from layercoop_fast.cli.evaluate import evaluate
from layercoop_fast.cli.generate import generate
from layercoop_fast.cli.options import (
    AsJson,
    Blocks,
    Device,
    Dtype,
    Memory,
    Model,
    SamplerOption,
    Seed,
    Tokens,
    TrustRemoteCode,
    WindowsOption,
    print_json,
    size_in_bytes,
)
from layercoop_fast.cli.prune import prune
from layercoop_fast.cli.quantise import quantise
from layercoop_fast.cli.report import report as write_report
from layercoop_fast.cli.shapley import shapley
from layercoop_fast.cli.store import app as store_app
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.bounds import MAX_MASK_BITS

app = typer.Typer(
    name="layercoop-fast",
    help="Which layers of a language model can go? Layer pruning as a cooperative game.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")
app.command()(bench)
app.command()(compare)
app.command()(cut)
app.command()(generate)
app.command("chat")(start_chat)
app.command()(quantise)
app.command("report")(write_report)
app.command()(prune)
app.command()(evaluate)
app.command()(shapley)


@app.command()
def doctor(
    model: Model,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    windows: WindowsOption = 10,
    tokens: Tokens = 128,
    blocks: Blocks = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Print what was found in a model: its blocks, what they are handed and return, the head, what fits."""
    from layercoop_fast.report.doctor import examine
    from layercoop_fast.report.tables import show_findings

    found = examine(
        model,
        dtype=dtype,
        device=device,
        windows=windows,
        tokens=tokens,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found)
    else:
        show_findings(found)


@app.command()
def plan(
    layers: Annotated[int, typer.Option(help="Layers of the model.")],
    masks: Annotated[int, typer.Option(help="Masks to measure.")] = 8000,
    sampler: SamplerOption = "strata",
    hidden: Annotated[int, typer.Option(help="Hidden size.")] = 4096,
    intermediate: Annotated[int | None, typer.Option(help="MLP width; default 3.5 times the hidden size.")] = None,
    kv_ratio: Annotated[float, typer.Option(help="Key-value heads over query heads.")] = 0.25,
    vocabulary: Annotated[int, typer.Option(help="Words of the head.")] = 128_256,
    windows: WindowsOption = 10,
    tokens: Tokens = 128,
    memory: Memory = None,
    itemsize: Annotated[int, typer.Option(help="Bytes a number: 2 for bfloat16.")] = 2,
    tflops: Annotated[float, typer.Option(help="Speed of the machine, TFLOP/s, for the hours.")] = 1.0,
    workers: Annotated[
        str | None, typer.Option(help="Numbers of workers, 2,8,128 for example: what cutting the masks for them costs.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Foretell sharing, memory and time for a model that is not here."""
    from dataclasses import asdict

    from layercoop_fast.masked.forecast import ModelShape, forecast
    from layercoop_fast.masks.samplers import get_sampler
    from layercoop_fast.report.tables import show_forecast
    from layercoop_fast.report.workers import show_sharing
    from layercoop_fast.workers.cut import sharing

    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=int(3.5 * hidden) if intermediate is None else intermediate,
        kv_ratio=kv_ratio,
        vocabulary=vocabulary,
        itemsize=itemsize,
    )
    shape.check()
    if masks < 1 or windows < 1 or tokens < 2 or not 0 < tflops < float("inf"):
        raise RequestError("--masks and --windows must be at least 1, --tokens at least 2, --tflops above 0")
    if masks * layers > MAX_MASK_BITS:
        most = MAX_MASK_BITS // layers
        raise RequestError(f"{masks} masks of {layers} layers are too many to lay out: at most {most}")
    counts = _counts(workers)
    drawn = get_sampler(sampler)(layers, masks, seed=seed).masks
    found = forecast(shape, drawn, windows=windows, tokens=tokens, memory=size_in_bytes(memory), tflops=tflops)
    found["sampler"] = sampler
    cuts = sharing(drawn, counts, head_cost=shape.head_flop(tokens) / shape.block_flop(tokens))
    if as_json:
        print_json({**found, "workers": [asdict(cut) for cut in cuts]} if cuts else found)
        return
    show_forecast(found)
    if cuts:
        show_sharing(cuts)


_MOST_WORKERS = 100_000


def _counts(text: str | None) -> list[int]:
    """`2,8,128` as numbers; None is no number."""
    if text is None:
        return []
    counts = [int(part) if part.strip().isdecimal() and len(part) < 10 else 0 for part in text.split(",")]
    if not 1 <= min(counts) <= max(counts) <= _MOST_WORKERS:
        raise RequestError(
            f"--workers {text!r} is no list of numbers of workers from 1 to {_MOST_WORKERS:,}: write 2,8,128"
        )
    return counts
