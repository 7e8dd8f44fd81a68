"""`layercoop-fast prune`: from a checkpoint to a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Model,
    Objective,
    Offload,
    Players,
    RepairText,
    RepairTokens,
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
    print_json,
    size_in_bytes,
    stopped_with,
    with_objective,
)
from layercoop_fast.search.base import DEFAULT_METHOD, METHODS


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
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Open the folder again and compare it with the masked model before it counts as written.",
        ),
    ] = True,
    force: Force = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Remove layers from a checkpoint and write what is left as a plain checkpoint."""
    from layercoop_fast.progress import Bars
    from layercoop_fast.pruning.prune import prune as run
    from layercoop_fast.report.tables import show_pruned

    with stopped_with(store), Bars("opening the model") as bars:
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
            verify=verify,
            force=force,
            trust_remote_code=trust_remote_code,
            on_progress=bars.update,
        )
    if as_json:
        print_json({"out": str(done.out), **done.record})
    else:
        show_pruned([done])


def _labels(text: str | None) -> list[str]:
    """`0,1,3.attn` as labels; None is none."""
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]
