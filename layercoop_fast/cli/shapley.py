"""`layercoop-fast shapley`: what each player contributes, on what was measured here or before."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import (
    AsJson,
    Force,
    Objective,
    check_distinct,
    print_json,
    stopped_with,
    with_objective,
)
from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import CalibrationOptions, GameOptions
from layercoop_fast.inputs.options import OUTPUT, SEARCH, shell, values_of

if TYPE_CHECKING:
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.masks.types import Progress


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is estimated, from how many masks."""

    estimator: str = field(
        default="shapley",
        metadata=shell(
            "shapley: Shapley values with intervals, on an ensemble fitted to log worths. On the published network: "
            "stratified (the published contribution) or permutation (the Shapley value).",
            panel=SEARCH,
        ),
    )
    budget: int = field(default=8000, metadata=shell("Number of masks to measure on MODEL.", panel=SEARCH))
    sampler: str = field(
        default="strata",
        metadata=shell(
            "How masks are drawn: strata (as published, each mask by itself), two-stage, chains or subsets.",
            panel=SEARCH,
        ),
    )
    samples: int | None = field(
        default=None,
        metadata=shell(
            "Masks (estimator stratified; default 80000) or permutations (2000) to sample on the surrogate. The "
            "estimator shapley is exact up to 24 players unless this is given.",
            panel=SEARCH,
        ),
    )
    interactions: bool = field(
        default=False, metadata=shell("Estimate the interaction of every pair as well.", panel=OUTPUT)
    )
    best_per_size: bool = field(
        default=False,
        metadata=shell("Find the best mask of each size on the surrogate as well.", panel=OUTPUT),
    )


@expanded()
def shapley(
    estimate: Estimate,
    text: CalibrationOptions,
    options: GameOptions,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Checkpoint to measure masks of.")] = None,
    worths: Annotated[Path | None, typer.Option(help="Or a worths.npz that was measured before.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --worths: a values.npz to write. With MODEL: a worths.npz of what it measures.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    objective: Objective = "mean",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Estimate what each layer contributes, on a surrogate fitted to measured worths, and how sure that is."""
    from layercoop_fast.files import check_target
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.kernels.memory import gpu_named, has_triton
    from layercoop_fast.masks.samplers import get_sampler
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.values import save_values, show_valuation, valuation_json
    from layercoop_fast.search.official import DEFAULT_SAMPLES
    from layercoop_fast.search.valuation import value_players

    store = None if options.store is None else Path(options.store)
    if (model is None) == (worths is None):
        raise RequestError("give either a MODEL to measure or --worths FILE, measured already")
    if estimate.estimator not in ("shapley", *DEFAULT_SAMPLES):
        raise RequestError(
            f"unknown estimator {estimate.estimator!r}: choose from shapley, {', '.join(DEFAULT_SAMPLES)}"
        )
    if estimate.estimator != "shapley" and (estimate.interactions or estimate.best_per_size):
        raise RequestError("--interactions and --best-per-size belong to --estimator shapley")
    draw = get_sampler(estimate.sampler)
    check_distinct(out=out, store=store, worths=worths)
    if out is not None:
        check_target(out, force=force)
    # A surrogate goes where the model goes, if Triton is there; on --worths the device is of the surrogate alone.
    surrogate_device = "cpu"
    if worths is not None and options.device != "cpu":
        gpu_named(options.device, "a surrogate")
        surrogate_device = options.device
    elif options.device.startswith("cuda") and options.workers is None and has_triton():
        surrogate_device = options.device
    clusters = None
    with stopped_with(store), Bars("opening the model" if worths is None else "reading worths") as bars:
        if worths is not None:
            measured = Worths.load(worths)
        else:
            asked = values_of(with_objective(options, objective), GameOptions)
            opened = ModelGame.from_pretrained(str(model), text.calibration, **asked, on_progress=bars.update)
            with closing(opened) as game:
                masks, clusters = draw(game.n_players, estimate.budget, seed=options.seed)
                measured = game.evaluate(masks)
            if out is not None:
                measured.save(out, force=force)
        if estimate.estimator == "shapley":
            valued = value_players(
                measured,
                clusters=clusters,
                permutations=estimate.samples,
                seed=options.seed,
                interactions=estimate.interactions,
                best=int(estimate.best_per_size),
                progress=bars.update,
                device=surrogate_device,
            )
            record, show = valuation_json(valued), partial(show_valuation, valued)
        else:
            record, show = _published(measured, estimate, options.seed, bars.update, surrogate_device)
    if out is not None and worths is not None:
        save_values(record, out, force=force)
    if as_json:
        print_json(record)
    else:
        show()


def _published(
    measured: Worths, asked: Estimate, seed: int, progress: Progress, device: str
) -> tuple[dict[str, Any], partial[None]]:
    """Contributions on the published network: as JSON can hold them, and what shows them."""
    from layercoop_fast.report.tables import show_contributions
    from layercoop_fast.search.base import finite_or_none
    from layercoop_fast.search.official import estimate

    found = estimate(
        measured.masks,
        measured.worths,
        estimator=asked.estimator,
        samples=asked.samples,
        seed=seed,
        progress=progress,
        device=device,
    )
    record = {
        "players": measured.player_names,
        "method": found.values.method,
        "values": [finite_or_none(value) for value in found.values.values],
        "stderr": [finite_or_none(value) for value in found.values.stderr],
        "order": [int(player) for player in found.values.order()],
        **found.details,
    }
    return record, partial(show_contributions, found.values, found.details, measured.player_names)
