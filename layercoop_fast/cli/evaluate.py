"""`layercoop-fast evaluate`: measure masks and write their worths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, Force, Model, Objective, check_distinct, print_json, with_objective
from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import CalibrationOptions, GameOptions
from layercoop_fast.inputs.options import OUTPUT, values_of
from layercoop_fast.report.console import say
from layercoop_fast.system.stopping import STOPS, Stopped

if TYPE_CHECKING:
    from layercoop_fast.game.cost_forecast import CostForecast
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.spans import Spans

_PER_LAYER = {"layers": 1, "sublayers": 2}
"""Players a layer, of the kinds of players that follow from the config."""


@expanded()
def evaluate(
    model: Model,
    masks: Annotated[Path, typer.Option(help="A .npy of bool, masks x players; True = kept.")],
    out: Annotated[Path, typer.Option(help="The worths.npz to write.", rich_help_panel=OUTPUT)],
    text: CalibrationOptions,
    options: GameOptions,
    objective: Objective = "mean",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from OUT.store, left by a run that did not end.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="Write where the time went to this Chrome trace (.json).", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure the worths of masks and write them to a worths.npz.

    Until that is written, measured masks are kept in OUT.store: a run that was killed goes on with --resume. With
    --store they are kept in a file of yours instead, and every later run goes on from there by itself.
    """
    from layercoop_fast.engine.loading import stated_layers
    from layercoop_fast.files import check_target
    from layercoop_fast.game.cost_forecast import forecast_cost
    from layercoop_fast.game.known_scores import store_of_run
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.game.store import check_store
    from layercoop_fast.game.worths import check_width, load_masks
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.tables import show_cost_forecast
    from layercoop_fast.spans import Spans

    options = with_objective(options, objective)
    store = None if options.store is None else Path(options.store)
    players = str(options.players)
    check_distinct(out=out, profile=profile, store=store, masks=masks)
    for target in (out, profile):
        if target is not None:
            check_target(target, force=force)
    if options.workers is not None and profile is not None:
        raise RequestError(
            "--profile watches this process, and with --workers others do the work: leave one of them out"
        )
    if store is not None and resume:
        raise RequestError("--resume goes on from OUT.store; with --store FILE every run goes on from FILE by itself")
    given = load_masks(masks)
    if store is not None:
        check_store(store)
    # Players of other kinds, and blocks named by hand, can be counted only in the opened model.
    if options.blocks is None and players in _PER_LAYER:
        layers = stated_layers(model, trust_remote_code=options.trust_remote_code)
        if layers is not None:
            check_width(given, _PER_LAYER[players] * layers, masks)
    kept = nullcontext(store) if store is not None else store_of_run(out, resume=resume)
    with kept as place, Bars("opening the model") as bars:
        asked = values_of(replace(options, store=place), GameOptions)
        opened = ModelGame.from_pretrained(model, text.calibration, **asked, on_progress=bars.update)
        with closing(opened) as game:
            check_width(given, game.n_players, masks)
            ahead = forecast_cost(game, given)
            if not as_json:
                show_cost_forecast(ahead)
            read_before = game.masked.weights_read
            spans = Spans(trace=profile is not None)
            again = "" if store is not None else " with --resume"
            with _kept_in(place, again, game), spans:
                measured = game.evaluate(given)
        measured.save(out, force=force)
    summary = _summary(out, game, measured, ahead, spans, game.masked.weights_read - read_before)
    if profile is not None:
        spans.write_trace(profile, force=force)
    if as_json:
        print_json(summary)
    else:
        _show(summary, game, measured, spans, place, profile)


@contextmanager
def _kept_in(place: Path, again: str, game: ModelGame) -> Iterator[None]:
    """On Ctrl-C, or a signal, tell that the measured masks are kept."""
    try:
        yield
    except STOPS as stop:
        if len(game.known) == 0:
            raise
        raise Stopped(
            f"The {len(game.known)} masks measured so far are kept in {place}: "
            f"the same command{again} goes on from there",
            stop,
        ) from stop


def _summary(
    out: Path, game: ModelGame, measured: Worths, ahead: CostForecast, spans: Spans, weights_read: int
) -> dict[str, Any]:
    """What was done, as JSON can hold it."""
    import numpy as np

    from layercoop_fast.search.base import finite_or_none

    def median(errors: Any) -> float | None:
        return finite_or_none(float(np.median(errors)))

    worth_stderr = measured.worth_stderr if len(measured.masks) else None
    return {
        "out": str(out),
        "not_finite": measured.n_not_finite,
        "nll_stderr": median(measured.nll_stderr) if len(measured.masks) else None,
        **({} if worth_stderr is None else {"worth_stderr": median(worth_stderr)}),
        "seconds": round(spans.wall, 3),
        "from_store": len(game.known) - game.evaluations.unique,
        "evaluations": asdict(game.evaluations),
        "weights_read": weights_read,
        "outlook": asdict(ahead),
        "seconds_by_work": {**spans.seconds, "idle": spans.idle},
        "share_of_products": spans.share_of_products,
    }


def _show(
    summary: dict[str, Any],
    game: ModelGame,
    measured: Worths,
    spans: Spans,
    place: Path,
    profile: Path | None,
) -> None:
    """Print what was done."""
    from layercoop_fast.report.tables import show_breakdown

    counts = game.evaluations
    known = f", {summary['from_store']} of them taken from {place}" if summary["from_store"] else ""
    say(
        f"{len(measured.masks)} masks measured in {summary['seconds']} s by {counts.layer_evals:,} layer evaluations "
        f"(naive: {counts.layer_evals_naive:,}){known}; {measured.n_not_finite} worths are not finite. "
        f"Written to {summary['out']}"
    )
    if "worth_stderr" in summary:
        error = math.nan if summary["worth_stderr"] is None else summary["worth_stderr"]
        say(f"standard error of a mask's {game.utility.name} over items, median: {error:.3g}")
    elif summary["nll_stderr"] is not None:
        say(f"standard error of a mask's NLL over windows, median: {summary['nll_stderr']:.3g} nats a token")
    if summary["weights_read"]:
        say(f"read {summary['weights_read'] / 2**30:.2f} GiB of weights from the checkpoint's files")
    if not game.masked.n_workers:
        show_breakdown(spans)
    if profile is not None:
        say(f"The trace is in {profile}: open it in chrome://tracing or ui.perfetto.dev")
