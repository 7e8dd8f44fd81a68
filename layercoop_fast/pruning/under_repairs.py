"""A search among masks as they are repaired, on held-out windows of every text that repairs are fitted to.

What a mask is worth before its repair does not say what it is worth after: a repair makes up for some removed runs
better than for others. So masks are measured with the maps of their gaps (`repair/run_maps.py`), on all kinds of text
alike, since a mask that one kind chooses may be dear on another. The repair of the answer is then fitted in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.repair.fit import check_repairable
from layercoop_fast.repair.repaired_model import repaired_game
from layercoop_fast.repair.run_maps import RunMaps, fit_run_maps, longest_run
from layercoop_fast.repair.texts import RepairTexts, texts_to_fit

if TYPE_CHECKING:
    from layercoop_fast.pruning.opening import Problem

TOKENS = 16_384
"""That the maps of a search are fitted to: a quarter of those of a repair by default."""
WINDOWS = 4
"""Of each text, held out of the fit, that masks are measured on."""


@dataclass(frozen=True, eq=False)
class UnderRepairs:
    """What is searched.

    Attributes:
        game: of masks with the maps of their gaps.
        unrepaired: the same windows without maps.
        texts: of the repair of the answer.
        maps: of all runs.
        details: what the search was on, for the record.
    """

    game: ModelGame
    unrepaired: ModelGame
    texts: RepairTexts
    maps: RunMaps
    details: dict[str, Any]


def under_repairs(problem: Problem, request: PruneRequest) -> UnderRepairs:
    """Fit the maps, and make the game of masks with their maps.

    Raises `RequestError` where nothing can be repaired.
    """
    game, progress = problem.game, problem.timer.progress
    check_repairable(game)
    texts = texts_of_repair(problem, request)
    if not texts.texts:
        raise RequestError(
            f"no repair can be fitted, so none can be searched for: {'; '.join(texts.left_out.values())}"
        )
    largest = max(map(len, game.masked.players.groups))
    longest = longest_run(game.masked, problem.goal.target.size * largest)
    maps = fit_run_maps(game, texts.fewer(TOKENS), longest, progress=progress)
    text = texts.heldout(WINDOWS)
    details = {**maps.record, "windows": len(text.ids), "layer_tokens": maps.tokens}
    played = repaired_game(game, maps, text, counts=game.evaluations)
    return UnderRepairs(played, game.view(text=text), texts, maps, {"under_repairs": details})


def texts_of_repair(problem: Problem, request: PruneRequest) -> RepairTexts:
    """The texts that repairs are fitted to."""
    return texts_to_fit(
        problem.game,
        request.repair_text,
        request.repair_tokens,
        required=request.repair is True,
        heldout=() if request.heldout is None else [request.heldout],
        seed=request.seed,
        progress=problem.timer.progress,
    )
