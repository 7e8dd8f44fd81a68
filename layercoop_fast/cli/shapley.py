"""`layercoop-fast shapley`: what each player contributes, on what was measured here or before."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layercoop_fast.cli.options import (
    AsJson,
    BlockPath,
    Blocks,
    CalibrationOption,
    Chat,
    Device,
    Dtype,
    Force,
    Memory,
    Objective,
    Offload,
    Players,
    SamplerOption,
    ScoreEvery,
    Seed,
    ShareContext,
    Shots,
    StoreOption,
    Tokens,
    Tolerant,
    TrustRemoteCode,
    Utility,
    WindowsOption,
    WorkersOption,
    check_distinct,
    print_json,
    size_in_bytes,
    stopped_with,
    with_objective,
)
from layercoop_fast.errors import RequestError

if TYPE_CHECKING:
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.masks.types import Progress


def shapley(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Checkpoint to measure masks of.")] = None,
    worths: Annotated[Path | None, typer.Option(help="Or a worths.npz, measured already.")] = None,
    estimator: Annotated[
        str,
        typer.Option(
            help="shapley (Shapley values with intervals, on an ensemble fitted to log worths), or on the published "
            "network: stratified (the published contribution) or permutation (the Shapley value)."
        ),
    ] = "shapley",
    budget: Annotated[int, typer.Option(help="Masks to measure on MODEL.")] = 8000,
    sampler: SamplerOption = "strata",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Masks (stratified; 80000) or permutations (2000) on the surrogate. Estimator shapley samples none up "
            "to 24 players unless told to."
        ),
    ] = None,
    interactions: Annotated[bool, typer.Option("--interactions", help="Interaction of every pair as well.")] = False,
    best_per_size: Annotated[
        bool,
        typer.Option("--best-per-size", help="The best mask of each size, on the surrogate, as well."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="With --worths: a values.npz to write. With MODEL: a worths.npz of what it measures."),
    ] = None,
    calibration: CalibrationOption = None,
    objective: Objective = "mean",
    chat: Chat = False,
    utility: Utility = "ppl_ratio",
    players: Players = "layers",
    windows: WindowsOption = 10,
    tokens: Tokens = 128,
    shots: Shots = 0,
    share_context: ShareContext = True,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    memory: Memory = None,
    blocks: Blocks = None,
    block_path: BlockPath = "auto",
    score_every: ScoreEvery = 1,
    store: StoreOption = None,
    workers: WorkersOption = None,
    tolerant: Tolerant = False,
    offload: Offload = False,
    force: Force = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
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

    if (model is None) == (worths is None):
        raise RequestError("give either a MODEL to measure or --worths FILE, measured already")
    if estimator not in ("shapley", *DEFAULT_SAMPLES):
        raise RequestError(f"unknown estimator {estimator!r}: choose from shapley, {', '.join(DEFAULT_SAMPLES)}")
    if estimator != "shapley" and (interactions or best_per_size):
        raise RequestError("--interactions and --best-per-size belong to --estimator shapley")
    draw = get_sampler(sampler)
    check_distinct(out=out, store=store, worths=worths)
    if out is not None:
        check_target(out, force=force)
    # A surrogate goes where the model goes, if Triton is there; on --worths the device is of the surrogate alone.
    surrogate_device = "cpu"
    if worths is not None and device != "cpu":
        gpu_named(device, "a surrogate")
        surrogate_device = device
    elif device.startswith("cuda") and workers is None and has_triton():
        surrogate_device = device
    clusters = None
    with stopped_with(store), Bars("opening the model" if worths is None else "reading worths") as bars:
        if worths is not None:
            measured = Worths.load(worths)
        else:
            opened = ModelGame.from_pretrained(
                str(model),
                calibration or "builtin",
                utility=with_objective(utility, objective),
                players=players,
                windows=windows,
                tokens=tokens,
                shots=shots,
                share_context=share_context,
                seed=seed,
                dtype=dtype,
                device=device,
                memory=size_in_bytes(memory),
                blocks=blocks,
                block_path=block_path,
                score_every=score_every,
                trust_remote_code=trust_remote_code,
                store=store,
                workers=workers,
                tolerant=tolerant,
                offload=offload,
                chat=chat,
                on_progress=bars.update,
            )
            with closing(opened) as game:
                masks, clusters = draw(game.n_players, budget, seed=seed)
                measured = game.evaluate(masks)
            if out is not None:
                measured.save(out, force=force)
        if estimator == "shapley":
            valued = value_players(
                measured,
                clusters=clusters,
                permutations=samples,
                seed=seed,
                interactions=interactions,
                best=int(best_per_size),
                progress=bars.update,
                device=surrogate_device,
            )
            record, show = valuation_json(valued), partial(show_valuation, valued)
        else:
            record, show = _published(measured, estimator, samples, seed, bars.update, surrogate_device)
    if out is not None and worths is not None:
        save_values(record, out, force=force)
    if as_json:
        print_json(record)
    else:
        show()


def _published(
    measured: Worths, estimator: str, samples: int | None, seed: int, progress: Progress, device: str
) -> tuple[dict[str, Any], partial[None]]:
    """Contributions on the published network: as JSON can hold them, and what shows them."""
    from layercoop_fast.report.tables import show_contributions
    from layercoop_fast.search.base import finite_or_none
    from layercoop_fast.search.official import estimate

    found = estimate(
        measured.masks,
        measured.worths,
        estimator=estimator,
        samples=samples,
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
