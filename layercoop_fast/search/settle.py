"""The settle stage: the finalists of a search are measured on more and more windows until the best one is certain.

A search ends with a best mask and others that are nearly as good, whose order on few windows is partly chance. While
the probability that the second best is better than the best (`game/bootstrap.py`) is above a level, windows are added
and the best wanted masks of the search are measured on them. A step increases W windows of a text to 2W − 1: the new
ones lie half-way between the old ones, so that no window is measured twice. The search is not repeated: masks that it
did not measure are not considered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.utility import Utility
from layercoop_fast.masked.scores import Scores, joined, same_bits
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.search.base import Choice, finite_or_none
from layercoop_fast.search.finalists import best_measured
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.domains import one_domain
from layercoop_fast.texts.mixture import grown_from

# Masks of the search that are measured on more windows.
_FINALISTS = 8


def check_settling(game: ModelGame, level: float, most_windows: int) -> None:
    """Raise `RequestError` where `settle` would not work; to be called before a search."""
    if not 0 < level < 0.5:
        raise RequestError(
            f"settle= must be a probability between 0 and 0.5 that the second-best mask is better, not {level:g}"
        )
    if not isinstance(game.utility, Utility) or game.utility.parts is None:
        raise RequestError(
            f"settle= adds windows of text, and {game.utility.name} is not a mean over windows: use nll or kl"
        )
    each = windows_of_each(game.calibration)
    if most_windows < each:
        raise RequestError(
            f"most_windows= must be at least the {each} windows of each text to begin with, not {most_windows}"
        )


def windows_of_each(calibration: Any) -> int:
    """Number of windows of each text of a calibration."""
    texts = 1 if calibration.domains is None else len(calibration.domains.weights)
    return int(calibration.ids.shape[0]) // texts


def settle(
    game: ModelGame,
    choice: Choice,
    level: float,
    *,
    most_windows: int,
    cut: Callable[[int], Calibration],
    wanted: Callable[[Masks], bool],
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ModelGame, Choice]:
    """Find the best finalist on a growing number of windows.

    Args:
        game: that was searched, after `check_settling`.
        choice: result of the search; it is one of the finalists.
        level: the stage ends when the probability that the second best is better is at most this, 0 to 0.5.
        most_windows: of each text.
        cut: gives the calibration of a number of windows of each text of the game.
        wanted: whether a mask (bool [n]) may be chosen.
        seed: of the resampling.
        progress: called with ("windows of each text", done, most).

    Returns the game on the text that was used last, and the choice. Its `details["settled"]` states for each number of
    windows the best mask, how certain that was, and why the stage ended.
    """
    calibration = game.calibration
    assert isinstance(calibration, Calibration)
    masks = best_measured(game, choice.mask, wanted, _FINALISTS)
    scores = _scores(game, masks)
    rng = np.random.default_rng(seed)
    steps: list[dict[str, Any]] = []
    leader = choice.mask
    stopped = "the search measured no other mask that may be chosen"
    while len(masks) > 1:
        domains = calibration.domains or one_domain(len(calibration.ids))
        rises = _rises(game, scores)
        losses = domains.loss(rises, game.utility.objective if isinstance(game.utility, Utility) else "mean")
        first, second = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")[:2]
        leader = masks[first]
        chance = probability_better(
            rises[first], rises[second], rng=rng, domains=domains, objective=getattr(game.utility, "objective", "mean")
        )
        steps.append(
            {
                "windows": len(calibration.ids),
                "removed": np.flatnonzero(~leader).tolist(),
                "loss": finite_or_none(float(losses[first])),
                "runner_up": np.flatnonzero(~masks[second]).tolist(),
                "runner_up_loss": finite_or_none(float(losses[second])),
                "runner_up_better": chance,
            }
        )
        each = windows_of_each(calibration)
        if progress is not None:
            progress("windows of each text", each, most_windows)
        if chance is not None and chance <= level:
            stopped = "settled"
            break
        wished = max(2, 2 * each - 1)
        if wished > most_windows:
            stopped = f"{wished} windows of each text would be more than {most_windows}"
            break
        try:
            calibration, added = grown_from(calibration, cut(wished))
        except RequestError as error:  # the text is too short for more windows
            stopped = str(error)
            break
        more = game.view(text=added)
        scores = joined([scores, _scores(more, masks)])
        more.masked.windows.free()
    searched = np.flatnonzero(~choice.mask).tolist()
    found = {"level": level, "stopped": stopped, "finalists": len(masks), "searched": searched, "steps": steps}
    if calibration is game.calibration:
        return game, replace(choice, mask=leader, details={**choice.details, "settled": found})
    grown = game.view(text=calibration, counts=game.evaluations)  # it replaces the game
    _tell(grown, masks, scores)
    return grown, replace(choice, mask=leader, details={**choice.details, "settled": found})


def _scores(game: ModelGame, masks: Masks) -> Scores:
    """Window scores of the full model and the masks, float64 [1 + M, W]."""
    return game.window_scores(np.concatenate([np.ones_like(masks[:1]), masks]))


def _rises(game: ModelGame, scores: Scores) -> Floats:
    """Increase of the masks' losses on each window over the full model's, float64 [M, W]."""
    assert isinstance(game.utility, Utility)
    return game.utility.window_losses(scores.nll[1:], scores.kl[1:], scores.nll[:1], scores.kl[:1])


def _tell(grown: ModelGame, masks: Masks, scores: Scores) -> None:
    """Hand the scores of the finalists to the game on all windows, for the repair stage.

    Where a window's scores differ in bits between large and small batches (see `StagedGame`), it measures them itself.
    """
    if same_bits(grown.window_scores(np.ones_like(masks[:1])), Scores(scores.nll[:1], scores.kl[:1])):
        grown.learn(masks, Scores(scores.nll[1:], scores.kl[1:]))
    else:
        grown.window_scores(masks)
