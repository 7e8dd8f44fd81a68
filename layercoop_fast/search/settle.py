"""More text until it is settled which mask is the best: the finalists of a search, on a growing number of windows.

A search ends with a best mask and others that are nearly as good, and on few windows the order of these is partly luck.
Here the best wanted masks that the search has measured go on, and as long as the probability that the
second is better than the first (`game/bootstrap.py`) is above a level, windows are added and both are asked again. A
step takes W windows of a text to 2W − 1: the new ones lie half-way between the old, so that nothing is measured twice.
The search is not repeated: a mask that it never measured does not come in.
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

# Masks that go on from the search.
_FINALISTS = 8


def check_settling(game: ModelGame, level: float, most_windows: int) -> None:
    """Raise `RequestError` for what `settle` cannot do: to be called before a search."""
    if not 0 < level < 0.5:
        raise RequestError(f"--settle {level:g} is no probability between 0 and 0.5 that the next-best mask is better")
    if not isinstance(game.utility, Utility) or game.utility.parts is None:
        raise RequestError(
            f"--settle adds windows of text, and {game.utility.name} is no mean over such: use nll or kl"
        )
    each = windows_of_each(game.calibration)
    if most_windows < each:
        raise RequestError(f"--most-windows {most_windows} is less than the {each} windows of each text to begin with")


def windows_of_each(calibration: Any) -> int:
    """Windows of each text of a calibration."""
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
    """The best finalist on as much text as it takes, and the game on that text.

    Args:
        game: what was searched on, after `check_settling`.
        choice: what the search found; it is among the finalists.
        level: the probability that the second is better which is low enough, 0 to 0.5.
        most_windows: windows of each text that are not exceeded.
        cut: from a number of windows of each text to them, cut from the texts of the game.
        wanted: which masks (bool [n]) may win.

    The choice's `details["settled"]` says for each number of windows which mask led and how sure that was, and why
    growing ended.
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
        except RequestError as error:  # the text is too short
            stopped = str(error)
            break
        more = game.view(text=added)
        scores = joined([scores, _scores(more, masks)])
        more.masked.windows.free()
    searched = np.flatnonzero(~choice.mask).tolist()
    found = {"level": level, "stopped": stopped, "finalists": len(masks), "searched": searched, "steps": steps}
    if calibration is game.calibration:
        return game, replace(choice, mask=leader, details={**choice.details, "settled": found})
    grown = game.view(text=calibration, counts=game.evaluations)  # it goes on in that game's place
    _tell(grown, masks, scores)
    return grown, replace(choice, mask=leader, details={**choice.details, "settled": found})


def _scores(game: ModelGame, masks: Masks) -> Scores:
    """Of the full model and the masks, float64 [1 + M, W]."""
    return game.window_scores(np.concatenate([np.ones_like(masks[:1]), masks]))


def _rises(game: ModelGame, scores: Scores) -> Floats:
    """What the losses of masks rose by on each window, float64 [M, W]."""
    assert isinstance(game.utility, Utility)
    return game.utility.window_losses(scores.nll[1:], scores.kl[1:], scores.nll[:1], scores.kl[:1])


def _tell(grown: ModelGame, masks: Masks, scores: Scores) -> None:
    """Let the game on all windows know the finalists, which a repair may be tried on.

    Where windows have other bits among many than among few (see `StagedGame`) it measures them itself.
    """
    if same_bits(grown.window_scores(np.ones_like(masks[:1])), Scores(scores.nll[:1], scores.kl[:1])):
        grown.learn(masks, Scores(scores.nll[1:], scores.kl[1:]))
    else:
        grown.window_scores(masks)
