"""`layercoop-fast plan`: what measuring masks takes for a model that is not here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, SamplerOption, print_json
from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import GameOptions
from layercoop_fast.inputs.bounds import MAX_MASK_BITS
from layercoop_fast.inputs.options import MACHINE, MODEL, SEARCH, shell

_MOST_WORKERS = 100_000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a llama-shaped model."""

    layers: int = field(default=0, metadata=shell("Layers of the model.", panel=MODEL, required=True))
    hidden: int = field(default=4096, metadata=shell("Hidden size.", panel=MODEL))
    intermediate: int | None = field(
        default=None, metadata=shell("Width of the MLP. Default: 3.5 times the hidden size.", panel=MODEL)
    )
    kv_ratio: float = field(default=0.25, metadata=shell("Key-value heads divided by query heads.", panel=MODEL))
    vocabulary: int = field(default=128_256, metadata=shell("Tokens of the vocabulary.", panel=MODEL))
    itemsize: int = field(default=2, metadata=shell("Bytes of a number: 2 for bfloat16.", panel=MODEL))


@expanded(
    only=(
        "layers",
        "hidden",
        "intermediate",
        "kv_ratio",
        "vocabulary",
        "itemsize",
        "windows",
        "tokens",
        "memory",
        "seed",
    )
)
def plan(
    shape: Shape,
    options: GameOptions,
    masks: Annotated[int, typer.Option(help="Number of masks to measure.", rich_help_panel=SEARCH)] = 8000,
    sampler: SamplerOption = "strata",
    tflops: Annotated[
        float, typer.Option(help="Speed of the machine in TFLOP/s, for the hours.", rich_help_panel=MACHINE)
    ] = 1.0,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Numbers of workers, for example 2,8,128: what cutting the masks for them costs.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict sharing, memory and time for a model that is not here."""
    from layercoop_fast.masked.forecast import ModelShape, forecast
    from layercoop_fast.masks.samplers import get_sampler
    from layercoop_fast.report.tables import show_forecast
    from layercoop_fast.report.workers import show_sharing
    from layercoop_fast.workers.cut import sharing

    layers, windows, tokens = shape.layers, options.windows, options.tokens
    wide = int(3.5 * shape.hidden) if shape.intermediate is None else shape.intermediate
    model = ModelShape(**vars(replace(shape, intermediate=wide)))
    model.check()
    if masks < 1 or windows < 1 or tokens < 2 or not 0 < tflops < float("inf"):
        raise RequestError("--masks and --windows must be at least 1, --tokens at least 2, --tflops above 0")
    if masks * layers > MAX_MASK_BITS:
        most = MAX_MASK_BITS // layers
        raise RequestError(f"{masks} masks of {layers} layers are too many to lay out: at most {most}")
    counts = _counts(workers)
    drawn = get_sampler(sampler)(layers, masks, seed=options.seed).masks
    found = forecast(model, drawn, windows=windows, tokens=tokens, memory=options.memory, tflops=tflops)
    found["sampler"] = sampler
    cuts = sharing(drawn, counts, head_cost=model.head_flop(tokens) / model.block_flop(tokens))
    if as_json:
        print_json({**found, "workers": [asdict(cut) for cut in cuts]} if cuts else found)
        return
    show_forecast(found)
    if cuts:
        show_sharing(cuts)


def _counts(text: str | None) -> list[int]:
    """`2,8,128` as numbers; None gives an empty list."""
    if text is None:
        return []
    counts = [int(part) if part.strip().isdecimal() and len(part) < 10 else 0 for part in text.split(",")]
    if not 1 <= min(counts) <= max(counts) <= _MOST_WORKERS:
        raise RequestError(
            f"--workers {text!r} is no list of numbers of workers from 1 to {_MOST_WORKERS:,}: write 2,8,128"
        )
    return counts
