"""What measuring masks on a model will take, before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from layercoop_fast.engine.plan import Plan, build_plan
from layercoop_fast.game.protocol import Masks, check_masks

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame

# The pilot stops after this long, but runs two units and one head at least.
PILOT_SECONDS = 2.0


@dataclass(frozen=True)
class Outlook:
    """Work ahead.

    Attributes:
        masks: masks asked.
        known: of the distinct ones, those that need no measuring.
        unique: distinct masks to measure, the full model among them.
        layer_evals: unit evaluations that takes; `skip` without sharing, `naive` all units for every mask.
        gflop: of those and of a head a mask (see `engine/flops.py`).
        state_bytes: memory for stored states.
        weight_bytes: of the model.
        seconds: by a short pilot of units on one state each; wider batches are mostly faster.
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


def outlook(game: ModelGame, masks: Masks) -> Outlook:
    """Foretell `game.evaluate(masks)` for masks `bool[M, n]`; nothing is measured but a short pilot.

    Raises `RequestError` for masks of another shape or dtype.
    """
    masks = check_masks(masks, game.n_players)
    unknown, n_distinct = game.unknown(masks)
    states, _ = game.limits()
    plan = build_plan(game.players.unit_masks(unknown), states)
    parameters = list(game.checkpoint.model.parameters())
    unit_flops, head_flops = game.flops
    unit_seconds, head_seconds = _pilot(game) if plan.n_unique else (0.0, 0.0)
    return Outlook(
        masks=len(masks),
        known=n_distinct - plan.n_unique,
        unique=plan.n_unique,
        layer_evals=plan.scheduled,
        skip=plan.skip,
        naive=plan.naive,
        gflop=(float(evaluations_by_unit(plan) @ unit_flops) + plan.n_unique * head_flops) / 1e9,
        state_bytes=plan.peak_states * game.windows.state_bytes,
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        seconds=plan.scheduled * unit_seconds + plan.n_unique * head_seconds,
    )


def evaluations_by_unit(plan: Plan) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How often each unit runs in a plan, `float64[U]`."""
    counts = np.zeros(plan.n_players)
    runs = plan.step_player >= 0
    np.add.at(counts, plan.step_player[runs], np.diff(plan.op_offsets)[runs])
    return counts


def _pilot(game: ModelGame) -> tuple[float, float]:
    """Seconds of a unit on one state (mean over those that were run), and of scoring one."""
    with torch.inference_mode():
        state = game.windows.context(1).embedding[: game.windows.n_windows].clone()
        game.units.run(0, [state], [state])  # the first call of anything is slow
        seconds: list[float] = []
        while len(seconds) < min(2, game.players.n_units) or (
            sum(seconds) < PILOT_SECONDS and len(seconds) < game.players.n_units
        ):
            began = time.perf_counter()
            game.units.run(len(seconds), [state], [state])
            seconds.append(time.perf_counter() - began)
        game.scorer.score(state)
        began = time.perf_counter()
        game.scorer.score(state)
    return float(np.mean(seconds)), time.perf_counter() - began
