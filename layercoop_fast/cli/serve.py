"""`layercoop-fast serve`: serve a model, and any number of its masks, by OpenAI's interface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import DraftOption, Model
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import MACHINE, OUTPUT, REMOVE
from layercoop_fast.runtime.options import RuntimeOptions, Sampling
from layercoop_fast.serving.options import Access, ServerOptions

if TYPE_CHECKING:
    from layercoop_fast.runtime.model import LayerSkipModel

_DRAFT_PROMPTS, _DRAFT_TOKENS = 4, 32
_KEY, _ADMIN_KEY = "LAYERCOOP_API_KEY", "LAYERCOOP_ADMIN_KEY"


@expanded()
def serve(
    model: Model,
    runtime: RuntimeOptions,
    options: ServerOptions,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="A mask that clients see as the model MODEL:NAME: the blocks to leave out, for example fast=13-18, or "
            "a folder that prune wrote; give the option once for each mask.",
            metavar="NAME=BLOCKS|DIR[@N]",
            rich_help_panel=REMOVE,
        ),
    ] = None,
    draft: DraftOption = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model to clients. Default: that of its folder.", rich_help_panel=OUTPUT),
    ] = None,
    worths: Annotated[
        Path | None,
        typer.Option(
            help="A worths.npz of this model, by which the page at / predicts the worth of a mask.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A key that clients must send; give the option once for each key. {_KEY} in the environment works "
            "too, and is not shown in the list of processes.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            help=f"The key that may add and remove masks, or {_ADMIN_KEY} in the environment.", rich_help_panel=MACHINE
        ),
    ] = None,
) -> None:
    """Serve a model and its masks to OpenAI's clients, from one copy of the weights.

    The page at / switches blocks on and off; /v1/models lists the masks; /metrics is for Prometheus.
    """
    fixed = _named(mask or [])
    access = Access(
        (*(api_key or ()), *_from_environment(_KEY)),
        _from_environment(_ADMIN_KEY) if admin_key is None else (admin_key,),
    )
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RequestError("serving needs an extra: pip install 'layercoop-fast[serve]'") from error

    from layercoop_fast.cli.generate import draft_of
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.report.console import say
    from layercoop_fast.runtime.model import LayerSkipModel
    from layercoop_fast.serving.app import Served, make_app
    from layercoop_fast.serving.board import Predictions
    from layercoop_fast.serving.masks import NamedMasks
    from layercoop_fast.serving.run import listen, run
    from layercoop_fast.serving.traces import add_traces

    measured = None if worths is None else Worths.load(worths)
    with listen(
        options.host, options.port
    ) as listening:  # before the model is opened: a port that is taken is said at once
        opened = LayerSkipModel.from_pretrained(model, **vars(runtime))
        masks = NamedMasks(opened, name or Path(model).resolve().name, fixed, options.max_masks)
        predictions = None if measured is None else Predictions(measured, opened.n_layers)
        drafted = None
        if draft is not None:
            drafted = draft_of(draft, opened, opened.mask(), _prompts(opened), Sampling(), quiet=False)
        app = make_app(Served(opened, masks, options, access, drafted, predictions, model))
        if options.traces:
            add_traces(app)
        where = f"[{options.host}]" if ":" in options.host else options.host
        names = ", ".join(each.model for each in masks.all())
        say(f"serving on http://{where}:{listening.getsockname()[1]}: {names}", err=True)
        status = run(app, listening, options)
    raise typer.Exit(status)


def _named(texts: list[str]) -> dict[str, str]:
    """`NAME=BLOCKS` options as masks by name."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, blocks = (part.strip() for part in text.partition("="))
        if not equals or not name or not blocks:
            raise RequestError(f"--mask {text} has no name: write NAME=BLOCKS, for example fast=13-18")
        if name in found:
            raise RequestError(f"--mask {name} is given twice: each name once")
        found[name] = blocks
    return found


def _from_environment(name: str) -> tuple[str, ...]:
    return tuple(filter(None, [os.environ.get(name)]))


def _prompts(model: LayerSkipModel) -> list[tuple[int, ...]]:
    """Beginnings of built-in texts, on which a draft is looked for."""
    from layercoop_fast.texts.calibration import cut_windows, read_text, require_tokenizer

    ids = cut_windows(read_text("builtin"), require_tokenizer(model.tokenizer), _DRAFT_PROMPTS, _DRAFT_TOKENS)
    return [tuple(row) for row in ids.tolist()]
