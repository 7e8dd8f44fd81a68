"""What measuring masks on a model will take, before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.engine.quantised import bytes_of
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masked.plan import Plan, layer_visits
from layercoop_fast.masks.types import Floats, Masks, check_masks


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
        states: the most stored at once: this many masks share what is read of a block.
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


def forecast_cost(game: ModelGame, masks: Masks) -> CostForecast:
    """Predict what `game.evaluate(masks)` takes for masks, bool [M, n]; nothing is measured but a short pilot.

    Raises `RequestError` for masks of another shape or dtype.
    """
    masks = check_masks(masks, game.n_players)
    model, n_workers = game.masked, max(1, game.masked.n_workers)
    unknown, n_distinct = game.known.missing(masks)
    plans = model.plans(unknown, short=game.known.store is not None)
    unit, head = model.pilot() if len(unknown) else (0.0, 0.0)
    unit_flops, head_flops = model.flops
    by_unit = sum((evaluations_by_unit(plan) for plan in plans), np.zeros(model.players.n_units))
    read_bytes, reading, seconds = 0, 0.0, 0.0
    for plan in plans:
        of_plan, waiting, computing = _by_visit(model, plan, unit, head)
        read_bytes += of_plan
        reading += float(waiting.sum())
        seconds += float(np.maximum(np.append(waiting, 0.0), np.append(0.0, computing)).sum()) / n_workers
    peak_states = max((plan.peak_states for plan in plans), default=0)
    return CostForecast(
        masks=len(masks),
        known=n_distinct - len(unknown),
        unique=len(unknown),
        layer_evals=sum(plan.scheduled for plan in plans),
        skip=sum(plan.skip for plan in plans),
        naive=sum(plan.naive for plan in plans),
        gflop=(float(by_unit @ unit_flops) + len(unknown) * head_flops) / 1e9,
        state_bytes=n_workers * peak_states * model.windows.state_bytes,
        weight_bytes=bytes_of(list(game.checkpoint.model.parameters())),
        seconds=seconds,
        states=peak_states,
        read_bytes=read_bytes,
        read_seconds=reading,
    )


def evaluations_by_unit(plan: Plan) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How often each unit runs in a plan, `float64[U]`."""
    counts = np.zeros(plan.n_players)
    runs = plan.step_player >= 0
    np.add.at(counts, plan.step_player[runs], np.diff(plan.op_offsets)[runs])
    return counts


def _by_visit(model: MaskedModel, plan: Plan, unit: float, head: float) -> tuple[int, Floats, Floats]:
    """Bytes of streamed blocks that a plan reads, and of each visit to a layer the seconds of reading and of computing.

    `unit` and `head` are the seconds of one evaluation each.
    """
    layers, visit = layer_visits(plan, model.skeleton.n_layers)
    operations = np.where(plan.step_player >= 0, np.diff(plan.op_offsets), 0)
    work = operations * unit + np.diff(plan.emit_offsets) * head
    computing: Floats = np.bincount(visit, weights=work, minlength=len(layers)).astype(np.float64)
    streamed = model.skeleton.streamed
    if streamed is None:
        return 0, np.zeros(len(computing)), computing
    sizes = np.zeros(len(computing))
    sizes[: len(layers)] = [streamed.bytes_of(int(layer)) for layer in layers]
    return int(sizes.sum()), sizes / streamed.bytes_a_second, computing
