"""The command line. Each command reads its arguments and calls the library; torch is loaded inside a command only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from layercoop_fast.cli_bench import bench
from layercoop_fast.cli_chat import chat as start_chat
from layercoop_fast.cli_compare import compare
from layercoop_fast.cli_cut import cut
from layercoop_fast.cli_generate import generate
from layercoop_fast.cli_options import (
    AsJson,
    BlockPath,
    Blocks,
    CalibrationOption,
    Chat,
    Device,
    Dtype,
    Force,
    Memory,
    Model,
    Objective,
    Offload,
    Players,
    RepairText,
    RepairTokens,
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
    size_in_bytes,
    with_objective,
)
from layercoop_fast.cli_quantise import quantise
from layercoop_fast.cli_report import report as write_report
from layercoop_fast.cli_store import app as store_app
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.search.base import DEFAULT_METHOD, METHODS

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


@app.command()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    calibration: CalibrationOption = None,
    objective: Objective = "mean",
    chat: Chat = False,
    remove: Annotated[int | None, typer.Option(help="How many players to remove.")] = None,
    drop: Annotated[float | None, typer.Option(help="Or which share of their parameters, 0 to 1.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Or by what factor the model is to be faster, 1.5 say.")] = None,
    fit: Annotated[str | None, typer.Option(help="Or how large its weights may be, 2GiB say.")] = None,
    costs: Annotated[
        str, typer.Option(help="What --speedup goes by: prefill or decode, measured here, or a FILE.json.")
    ] = "prefill",
    keep: Annotated[str | None, typer.Option(help="Layers (or halves) that stay: 0,1,12 or 3.attn.")] = None,
    keep_first: Annotated[int, typer.Option(min=0, help="So many first layers stay.")] = 0,
    keep_last: Annotated[int, typer.Option(min=0, help="So many last layers stay.")] = 0,
    must_go: Annotated[str | None, typer.Option(help="Layers (or halves) that are removed in any case.")] = None,
    stages: Annotated[int, typer.Option(min=1, help="So many contiguous stages keep equally many layers.")] = 1,
    method: Annotated[str, typer.Option(help=f"Which rule chooses: {', '.join(METHODS)}.")] = DEFAULT_METHOD,
    budget: Annotated[int | None, typer.Option(help="Masks the method may measure.")] = None,
    heldout: Annotated[str | None, typer.Option(help="A second text to measure on, never searched on.")] = None,
    settle: Annotated[
        float | None,
        typer.Option(help="Add windows until the next-best mask is better with this probability at most, 0.05 say."),
    ] = None,
    most_windows: Annotated[int, typer.Option(help="Windows of each text that --settle ends at.")] = 160,
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
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Refit the weights before each removed run to stand in for it; by default where that helps.",
        ),
    ] = None,
    repair_text: RepairText = None,
    repair_tokens: RepairTokens = 65_536,
    finalists: Annotated[
        int, typer.Option(help="Of the best masks measured so many are repaired, and the best of these is taken.")
    ] = 1,
    nested: Annotated[
        bool,
        typer.Option(
            "--nested",
            help="Masks of all sizes up to this one, each within the next, for --mask OUT@3.",
        ),
    ] = False,
    measure_cost: Annotated[
        bool,
        typer.Option(
            "--cost/--no-cost", help="Measure memory and speed of both models at the end; never with --offload."
        ),
    ] = True,
    samples: Annotated[
        int, typer.Option(min=0, help="Prompts that both models go on from in the report; 0: no text is written.")
    ] = 2,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write DIR/report.html.")] = True,
    force: Force = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Remove layers from a checkpoint and write what is left as a plain checkpoint."""
    from layercoop_fast.progress import Bars
    from layercoop_fast.pruning import prune as run
    from layercoop_fast.report.tables import show_pruned

    with _stopped_with(store), Bars() as bars:
        done = run(
            model,
            out,
            calibration=calibration or "builtin",
            remove=remove,
            drop=drop,
            speedup=speedup,
            fit=size_in_bytes(fit, "--fit"),
            costs=costs,
            keep=_labels(keep),
            keep_first=keep_first,
            keep_last=keep_last,
            must_go=_labels(must_go),
            stages=stages,
            method=method,
            budget=budget,
            heldout=heldout,
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
            store=store,
            workers=workers,
            tolerant=tolerant,
            offload=offload,
            repair=repair,
            repair_text=repair_text or None,
            repair_tokens=repair_tokens,
            finalists=finalists,
            nested=nested,
            chat=chat,
            settle=settle,
            most_windows=most_windows,
            measure_cost=measure_cost,
            samples=samples,
            report=report,
            force=force,
            trust_remote_code=trust_remote_code,
            on_progress=bars.update,
        )
    if as_json:
        _print_json({"out": str(done.out), **done.record})
    else:
        show_pruned([done])


@app.command()
def evaluate(
    model: Model,
    masks: Annotated[Path, typer.Option(help="A .npy of bool [masks, players], True = kept.")],
    out: Annotated[Path, typer.Option(help="The worths.npz to write.")],
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from OUT.store, left by a run that did not end.")
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(help="Write where the time went to this Chrome trace (.json).")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure the worths of masks and write them to a worths.npz.

    Until that is there, what is measured is kept in OUT.store: a run that was killed goes on with --resume. With
    --store it is kept in a file of yours instead, from which every later run goes on by itself.
    """
    from contextlib import nullcontext
    from dataclasses import asdict

    import numpy as np

    from layercoop_fast.files import check_target
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.game.outlook import outlook
    from layercoop_fast.game.shelf import store_beside
    from layercoop_fast.game.worths import load_masks
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.tables import show_breakdown, show_outlook
    from layercoop_fast.search.base import finite_or_none
    from layercoop_fast.spans import Spans

    _check_distinct(out=out, profile=profile, store=store, masks=masks)
    for target in (out, profile):
        if target is not None:
            check_target(target, force=force)
    if workers is not None and profile is not None:
        raise RequestError(
            "--profile watches this process, and with --workers others do the work: leave one of them out"
        )
    if store is not None and resume:
        raise RequestError("--resume goes on from OUT.store; with --store FILE every run goes on from FILE by itself")
    kept = nullcontext(store) if store is not None else store_beside(out, resume=resume)
    with kept as place, Bars() as bars:
        game = ModelGame.from_pretrained(
            model,
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
            store=place,
            workers=workers,
            tolerant=tolerant,
            offload=offload,
            chat=chat,
            on_progress=bars.update,
        )
        asked = load_masks(masks, game.n_players)
        ahead = outlook(game, asked)
        if not as_json:
            show_outlook(ahead)
        read_before = game.weights_read
        spans = Spans(trace=profile is not None)
        try:
            with spans:
                measured = game.evaluate(asked)
        except KeyboardInterrupt as stop:
            if game.n_known == 0:
                raise
            raise RunError(
                f"stopped. The {game.n_known} masks measured so far are kept in {place}: the same command"
                f"{'' if store is not None else ' with --resume'} goes on from there"
            ) from stop
        finally:
            game.close()
        measured.save(out, force=force)
    worth_stderr = measured.worth_stderr if len(measured.masks) else None
    weights_read = game.weights_read - read_before
    summary = {
        "out": str(out),
        "not_finite": measured.n_not_finite,
        "nll_stderr": finite_or_none(float(np.median(measured.nll_stderr))) if len(measured.masks) else None,
        **({} if worth_stderr is None else {"worth_stderr": finite_or_none(float(np.median(worth_stderr)))}),
        "seconds": round(spans.wall, 3),
        "from_store": game.n_known - game.evaluations.unique,
        "evaluations": asdict(game.evaluations),
        "weights_read": weights_read,
        "outlook": asdict(ahead),
        "seconds_by_work": {**spans.seconds, "idle": spans.idle},
        "share_of_products": spans.share_of_products,
    }
    if profile is not None:
        spans.write_trace(profile, force=force)
    if as_json:
        _print_json(summary)
        return
    counts = game.evaluations
    known = f", {summary['from_store']} of them taken from {place}" if summary["from_store"] else ""
    typer.echo(
        f"{len(measured.masks)} masks measured in {summary['seconds']} s by {counts.layer_evals:,} layer evaluations "
        f"(naive: {counts.layer_evals_naive:,}){known}; {measured.n_not_finite} worths are not finite. "
        f"Written to {out}"
    )
    if worth_stderr is not None:
        typer.echo(f"standard error of a mask's {utility} over items, median: {np.median(worth_stderr):.3g}")
    elif summary["nll_stderr"] is not None:
        typer.echo(f"standard error of a mask's NLL over windows, median: {summary['nll_stderr']:.3g} nats a token")
    if weights_read:
        typer.echo(f"read {weights_read / 2**30:.2f} GiB of weights from the checkpoint's files")
    if workers is None:
        show_breakdown(spans)
    if profile is not None:
        typer.echo(f"The trace is in {profile}: open it in chrome://tracing or ui.perfetto.dev")


@app.command()
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
    from functools import partial

    from layercoop_fast.files import check_target
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.game.samplers import get_sampler
    from layercoop_fast.game.worths import Worths
    from layercoop_fast.kernels.memory import gpu_named, has_triton
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.tables import show_contributions
    from layercoop_fast.report.values import save_values, show_valuation, valuation_json
    from layercoop_fast.search.base import finite_or_none
    from layercoop_fast.search.official import DEFAULT_SAMPLES, estimate
    from layercoop_fast.valuation import value_players

    if (model is None) == (worths is None):
        raise RequestError("give either a MODEL to measure or --worths FILE, measured already")
    if estimator not in ("shapley", *DEFAULT_SAMPLES):
        raise RequestError(f"unknown estimator {estimator!r}: choose from shapley, {', '.join(DEFAULT_SAMPLES)}")
    if estimator != "shapley" and (interactions or best_per_size):
        raise RequestError("--interactions and --best-per-size belong to --estimator shapley")
    draw = get_sampler(sampler)
    _check_distinct(out=out, store=store, worths=worths)
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
    with _stopped_with(store), Bars() as bars:
        if worths is not None:
            measured = Worths.load(worths)
        else:
            game = ModelGame.from_pretrained(
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
            masks, clusters = draw(game.n_players, budget, seed=seed)
            measured = game.evaluate(masks)
            game.close()
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
            found = estimate(
                measured.masks,
                measured.worths,
                estimator=estimator,
                samples=samples,
                seed=seed,
                progress=bars.update,
                device=surrogate_device,
            )
            record = {
                "players": measured.player_names,
                "method": found.values.method,
                "values": [finite_or_none(value) for value in found.values.values],
                "stderr": [finite_or_none(value) for value in found.values.stderr],
                "order": [int(player) for player in found.values.order()],
                **found.details,
            }
            show = partial(show_contributions, found.values, found.details, measured.player_names)
    if out is not None and worths is not None:
        save_values(record, out, force=force)
    if as_json:
        _print_json(record)
    else:
        show()


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
        _print_json(found)
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

    from layercoop_fast.engine.forecast import ModelShape, forecast
    from layercoop_fast.game.samplers import get_sampler
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
    if masks * layers > _MOST_BITS:
        raise RequestError(f"{masks} masks of {layers} layers are too many to lay out: at most {_MOST_BITS // layers}")
    counts = _counts(workers)
    drawn = get_sampler(sampler)(layers, masks, seed=seed).masks
    found = forecast(shape, drawn, windows=windows, tokens=tokens, memory=size_in_bytes(memory), tflops=tflops)
    found["sampler"] = sampler
    cuts = sharing(drawn, counts, head_cost=shape.head_flop(tokens) / shape.block_flop(tokens))
    if as_json:
        _print_json({**found, "workers": [asdict(cut) for cut in cuts]} if cuts else found)
        return
    show_forecast(found)
    if cuts:
        show_sharing(cuts)


_MOST_BITS = 10**10


def _check_distinct(**paths: Path | None) -> None:
    """Refuse one file for two things: the later would take the place of the earlier."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise RequestError(f"--{other} and --{name} are the same file, {path}: name two")


@contextmanager
def _stopped_with(store: Path | None) -> Iterator[None]:
    """Say on Ctrl-C that what was measured is kept, where there is a store."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if store is None or not store.exists():
            raise
        raise RunError(
            f"stopped. The masks measured so far are kept in {store}: the same command goes on from there"
        ) from stop


def _labels(text: str | None) -> list[str]:
    """`0,1,3.attn` as labels; None is none."""
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _counts(text: str | None) -> list[int]:
    """`2,8,128` as numbers; None is no number."""
    if text is None:
        return []
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise RequestError(f"--workers {text!r} is no list of numbers of workers: write 2,8,128")
    return counts


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
