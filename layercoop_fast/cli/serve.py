"""`layercoop-fast serve`: serve a model, and any number of its masks, by OpenAI's interface."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import DraftOption, Model
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import MACHINE, OUTPUT, REMOVE
from layercoop_fast.runtime.options import RuntimeOptions, Sampling
from layercoop_fast.serving.options import Access, ServerOptions
from layercoop_fast.serving.replicas import RayOptions

if TYPE_CHECKING:
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.runtime.model import LayerSkipModel
    from layercoop_fast.serving.app import Served

_DRAFT_PROMPTS, _DRAFT_TOKENS = 4, 32
_KEY, _ADMIN_KEY = "LAYERCOOP_API_KEY", "LAYERCOOP_ADMIN_KEY"


@expanded()
def serve(
    model: Model,
    runtime: RuntimeOptions,
    options: ServerOptions,
    replicas: RayOptions,
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
    if options.traces:
        from layercoop_fast.serving.traces import check_traces

        check_traces()  # before a model is opened for nothing

    from layercoop_fast.game.worths import Worths
    from layercoop_fast.report.console import say

    measured = None if worths is None else Worths.load(worths)
    called = name or Path(model).resolve().name
    if replicas.ray is not None:
        from layercoop_fast.masks.text import family_size
        from layercoop_fast.serving.ray_replica import Recipe
        from layercoop_fast.serving.ray_serve import serve_replicas

        model = os.path.abspath(model) if os.path.exists(model) else model
        fixed = {name: _anywhere(text) for name, text in fixed.items()}
        draft = None if draft is None else _anywhere(draft)
        named = [Path(text) for text in (model, *fixed.values(), draft or "") if os.path.isabs(text)]
        paths = [str(family_size(path)[0]) for path in named]
        make = partial(_open, model, runtime, options, access, called, fixed, draft, measured)
        recipe = Recipe(make, paths, options, runtime.device)
        names = ", ".join([called, *(f"{called}:{each}" for each in fixed)])
        raise typer.Exit(serve_replicas(recipe, replicas, names, partial(say, err=True)))

    from layercoop_fast.serving.app import make_app
    from layercoop_fast.serving.run import listen, run

    with listen(
        options.host, options.port
    ) as listening:  # before the model is opened: a port that is taken is said at once
        served = _open(model, runtime, options, access, called, fixed, draft, measured)
        app = make_app(served)
        where = f"[{options.host}]" if ":" in options.host else options.host
        names = ", ".join(each.model for each in served.masks.all())
        say(f"serving on http://{where}:{listening.getsockname()[1]}: {names}", err=True)
        status = run(app, listening, options)
    raise typer.Exit(status)


def _open(
    path: str,
    runtime: RuntimeOptions,
    options: ServerOptions,
    access: Access,
    name: str,
    fixed: dict[str, str],
    draft: str | None,
    measured: Worths | None,
) -> Served:
    """Open the model, and what else a server answers from."""
    from layercoop_fast.cli.generate import draft_of
    from layercoop_fast.runtime.model import LayerSkipModel
    from layercoop_fast.serving.app import Served
    from layercoop_fast.serving.board import Predictions
    from layercoop_fast.serving.masks import NamedMasks

    model = LayerSkipModel.from_pretrained(path, **vars(runtime))
    masks = NamedMasks(model, name, fixed, options.max_masks)
    predictions = None if measured is None else Predictions(measured, model.n_layers)
    drafted = None
    if draft is not None:
        drafted = draft_of(draft, model, model.mask(), _prompts(model), Sampling(), quiet=False)
    return Served(model, masks, options, access, drafted, predictions, path)


def _anywhere(mask: str) -> str:
    """What `mask_of` reads, with a folder as an absolute path."""
    from layercoop_fast.masks.text import family_size

    path, _ = family_size(Path(mask))
    return os.path.abspath(mask) if os.path.isdir(path) or path.suffix == ".json" else mask


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
