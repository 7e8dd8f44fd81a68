"""Stages 2 to 5 of `prune`: each takes the problem, what the stages before it found, and the request.

Stage 1 is in `pruning/opening.py`, stage 6 in `pruning/writing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.errors import RunError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.types import Floats
from layercoop_fast.progress import duration
from layercoop_fast.pruning.family import family_record
from layercoop_fast.pruning.opening import Problem
from layercoop_fast.pruning.record import quality_of
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.pruning.under_repairs import UnderRepairs, texts_of_repair, under_repairs
from layercoop_fast.repair.fit import Repaired
from layercoop_fast.repair.forecast import forecast_repair
from layercoop_fast.repair.texts import RepairTexts
from layercoop_fast.search import nested
from layercoop_fast.search.base import Choice
from layercoop_fast.search.by_cost import search_by_cost
from layercoop_fast.search.finalists import best_repaired
from layercoop_fast.search.settle import settle
from layercoop_fast.texts.mixture import load_texts


@dataclass(frozen=True, eq=False)
class Found:
    """What the stages have found so far.

    Attributes:
        game: the model on the calibration text, on more windows of it once settling has added some.
        under_repairs: what was searched, where that was masks as they are repaired; else None.
        choice: what is removed.
        repair: what was fitted to it; None without a repair.
        quality: worth, NLL and perplexity of both models on the calibration text, as the record holds them.
        unseen: the same on the held-out text, where there is one.
        family: every size of a nested family, where one was asked for.
    """

    game: ModelGame
    choice: Choice
    under_repairs: UnderRepairs | None = None
    repair: Repaired | None = None
    quality: dict[str, Any] | None = None
    unseen: dict[str, Any] | None = None
    family: dict[str, Any] | None = None


def search(problem: Problem, request: PruneRequest) -> Found:
    """Stage 2: choose which players go."""
    game, target, timer = problem.game, problem.goal.target, problem.timer
    asked: dict[str, Any] = {
        "seed": request.seed,
        "budget": request.budget,
        "progress": timer.progress,
        "allowed": problem.allowed,
    }
    with timer("search", "searching"):
        if request.search_repaired:
            under = under_repairs(problem, request)
            choice = search_by_cost(request.method, under.game, target, **asked)
            _check_finite(under.game.known_worths())
            return Found(game, replace(choice, details={**choice.details, **under.details}), under)
        if request.nested:
            choice = nested.search(game, target.size, **asked)
        else:
            choice = search_by_cost(request.method, game, target, **asked)
    _check_finite(game.known_worths())
    return Found(game, choice)


def settled(problem: Problem, found: Found, request: PruneRequest) -> Found:
    """Stage 3, where asked for: add windows until the choice is certain enough."""
    if request.settle is None:
        return found
    checkpoint, skeleton = found.game.checkpoint, found.game.masked.skeleton
    with problem.timer("settle"):
        game, choice = settle(
            found.game,
            found.choice,
            request.settle,
            most_windows=request.most_windows,
            # The other windows of 'self' are drawn with another seed; those of a text do not depend on it.
            cut=lambda count: load_texts(
                request.calibration,
                checkpoint.tokenizer,
                skeleton,
                windows=count,
                tokens=request.tokens,
                seed=request.seed + count,
                chat=request.chat,
            ),
            wanted=problem.may_win,
            seed=request.seed,
            progress=problem.timer.progress,
        )
    return replace(found, game=game, choice=choice)


def repaired(problem: Problem, found: Found, request: PruneRequest) -> Found:
    """Stage 4, where wanted and possible: fit a repair, or one to each finalist, of which the best is taken."""
    if request.repair is False or request.offload or is_quantised(found.game.checkpoint.model):
        return found
    under = found.under_repairs
    with problem.timer("repair"):
        texts = texts_of_repair(problem, request) if under is None else under.texts
        ahead = _ahead(found, texts, request)
        problem.timer.tell(ahead, 0)
        choice, repair = best_repaired(
            found.game if under is None else under.unrepaired,
            found.choice,
            request.finalists,
            problem.may_win,
            texts,
            compute=request.repair_compute,
            required=request.repair is True,
            searched=None if under is None else under.game,
            maps=None if under is None else under.maps,
            progress=problem.timer.progress,
        )
        problem.timer.tell(ahead, 1)
    return replace(found, choice=choice, repair=repair)


def _ahead(found: Found, texts: RepairTexts, request: PruneRequest) -> str:
    """What is ahead of a repair, in words, with about what it takes and would take otherwise."""
    what = "fitting a repair" if request.finalists == 1 else f"fitting {request.finalists} repairs"
    if not texts.texts:
        return what
    seconds = forecast_repair(found.game, found.choice.mask, texts)
    if request.repair_compute not in seconds:  # nothing can be refitted, which is found at once
        return what
    own = duration(seconds.pop(request.repair_compute) * request.finalists)
    others = "".join(f", {name} {duration(each * request.finalists)}" for name, each in seconds.items())
    return f"{what} ({request.repair_compute}: about {own}{others})"


def judged(problem: Problem, found: Found) -> Found:
    """Stage 5: measure the full and the pruned model."""
    game, choice = found.game, found.choice
    pair = np.stack([np.ones_like(choice.mask), choice.mask])
    with problem.timer("evaluate", "measuring both models"):
        quality = quality_of(game, pair, found.repair)
        _check_finite(game.known_worths())  # for methods that measure nothing, these are the first
        if quality["nll"]["pruned"] is None:
            raise RunError(
                f"what {choice.method} chose leaves a model whose NLL is not finite: weights are broken, or the dtype "
                "is too small for them (try dtype=float32, or another method)"
            )
        return replace(
            found,
            quality=quality,
            unseen=None if problem.heldout is None else quality_of(problem.heldout, pair, found.repair),
            family=family_record(game, problem.heldout, choice),
        )


def _check_finite(worths: Floats) -> None:
    """Raise `RunError` where masks were measured and no worth is finite: nothing can be chosen by them."""
    if len(worths) and not np.isfinite(worths).any():
        raise RunError(
            f"the worths of the full model and of the masks measured, {len(worths)} in all, are not finite: weights "
            "are broken, or the dtype is too small for them (try dtype=float32)"
        )
