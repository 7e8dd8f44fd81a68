"""What measuring masks on a model will take, before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from layercoop_fast.engine.quantised import bytes_of
from layercoop_fast.game.remote import open_workers, tasks_for
from layercoop_fast.masked.forward import wait_for
from layercoop_fast.masked.plan import Plan, build_plan, layer_visits
from layercoop_fast.masks.types import Floats, Masks, check_masks

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame

# The pilot stops after this long, but runs two units and one head at least.
PILOT_SECONDS = 2.0


@dataclass(frozen=True)
class CostForecast:
    """Work ahead.

    Attributes:
        masks: masks asked.
        known: of the distinct ones, those that need no measuring.
        unique: distinct masks to measure, the full model among them.
        layer_evals: unit evaluations that takes; `skip` without sharing, `naive` all units for every mask.
        gflop: of those and of a head a mask (see `masked/flops.py`).
        state_bytes: memory for stored states.
        weight_bytes: of the model; workers may each have a copy.
        seconds: by a short pilot of units on one state each; wider batches are mostly faster. A streamed block is
            taken to be read, at the rate seen last, while the one before it is at work.
        states: stored at once, at most: so many masks share what is read of a block.
        read_bytes: of weights to be read from files; 0 where the blocks are in memory.
        read_seconds: that reading alone.
    """

    masks: int
    known: int
    unique: int
    layer_evals: int
    skip: int
    naive: int
    gflop: float
    state_bytes: int
    weight_bytes: int
    seconds: float
    states: int
    read_bytes: int
    read_seconds: float


def outlook(game: ModelGame, masks: Masks) -> CostForecast:
    """Foretell `game.evaluate(masks)` for masks `bool[M, n]`; nothing is measured but a short pilot.

    Raises `RequestError` for masks of another shape or dtype.
    """
    masks = check_masks(masks, game.n_players)
    unknown, n_distinct = game.unknown(masks)
    unit_seconds, head_seconds, n_workers = 0.0, 0.0, 1
    if game.workers is None:
        plans = [build_plan(game.players.unit_masks(unknown), game.limits()[0])]
        if len(unknown):
            unit_seconds, head_seconds = time_pilot(game)
    else:
        workers = open_workers(game)
        n_workers = workers.transport.n_workers
        tasks = tasks_for(game, workers, unknown)
        plans = [build_plan(game.players.unit_masks(unknown[task.rows]), workers.states) for task in tasks]
        if len(unknown):
            unit_seconds, head_seconds = workers.pilot()
    parameters = list(game.checkpoint.model.parameters())
    unit_flops, head_flops = game.flops
    by_unit = sum((evaluations_by_unit(plan) for plan in plans), np.zeros(game.players.n_units))
    scheduled = sum(plan.scheduled for plan in plans)
    read_bytes, read_seconds = 0, 0.0
    seconds = (scheduled * unit_seconds + len(unknown) * head_seconds) / n_workers
    if game.workers is None:
        read_bytes, reading, computing = _by_visit(game, plans[0], unit_seconds, head_seconds)
        read_seconds = float(reading.sum())
        seconds = float(np.maximum(np.append(reading, 0.0), np.append(0.0, computing)).sum())
    return CostForecast(
        masks=len(masks),
        known=n_distinct - len(unknown),
        unique=len(unknown),
        layer_evals=scheduled,
        skip=sum(plan.skip for plan in plans),
        naive=sum(plan.naive for plan in plans),
        gflop=(float(by_unit @ unit_flops) + len(unknown) * head_flops) / 1e9,
        state_bytes=n_workers * max((plan.peak_states for plan in plans), default=0) * game.windows.state_bytes,
        weight_bytes=bytes_of(parameters),
        seconds=seconds,
        states=max((plan.peak_states for plan in plans), default=0),
        read_bytes=read_bytes,
        read_seconds=read_seconds,
    )


def evaluations_by_unit(plan: Plan) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How often each unit runs in a plan, `float64[U]`."""
    counts = np.zeros(plan.n_players)
    runs = plan.step_player >= 0
    np.add.at(counts, plan.step_player[runs], np.diff(plan.op_offsets)[runs])
    return counts


def _by_visit(game: ModelGame, plan: Plan, unit: float, head: float) -> tuple[int, Floats, Floats]:
    """Bytes of streamed blocks that a plan reads, and of each visit to a layer the seconds of reading and of computing.

    `unit` and `head` are the seconds of one evaluation each.
    """
    layers, visit = layer_visits(plan, game.skeleton.n_layers)
    operations = np.where(plan.step_player >= 0, np.diff(plan.op_offsets), 0)
    work = operations * unit + np.diff(plan.emit_offsets) * head
    computing: Floats = np.bincount(visit, weights=work, minlength=len(layers)).astype(np.float64)
    streamed = game.skeleton.streamed
    if streamed is None:
        return 0, np.zeros(len(computing)), computing
    sizes = np.zeros(len(computing))
    sizes[: len(layers)] = [streamed.bytes_of(int(layer)) for layer in layers]
    return int(sizes.sum()), sizes / streamed.bytes_a_second, computing


def time_pilot(game: ModelGame) -> tuple[float, float]:
    """Seconds of a unit on one state (mean over those that were run), and of scoring one."""
    with torch.inference_mode():
        state = game.windows.context(1).embedding[: game.windows.n_windows].clone()
        game.skeleton.expect(range(game.skeleton.n_layers))
        game.units.run(0, [state], [state])  # the first call of anything is slow
        wait_for(game.skeleton.device)
        seconds: list[float] = []
        started = time.perf_counter()
        while len(seconds) < min(2, game.players.n_units) or (
            time.perf_counter() - started < PILOT_SECONDS and len(seconds) < game.players.n_units
        ):
            game.skeleton.block(game.players.layer(len(seconds)))  # what is read for it is not the unit's own time
            began = time.perf_counter()
            game.units.run(len(seconds), [state], [state])
            wait_for(game.skeleton.device)
            seconds.append(time.perf_counter() - began)
        game.scorer.score(state)
        began = time.perf_counter()
        game.scorer.score(state)
    return float(np.mean(seconds)), time.perf_counter() - began
