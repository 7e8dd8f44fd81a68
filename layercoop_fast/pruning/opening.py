"""Stage 1 of `prune`: the model, its texts, and what may go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.errors import RequestError
from layercoop_fast.files import check_spared, check_target
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.options import GameOptions
from layercoop_fast.game.other_text import on_other_text
from layercoop_fast.inputs.options import MOST_WINDOWS, values_of
from layercoop_fast.masks.types import Masks
from layercoop_fast.pruning.family import check_counted, check_nested
from layercoop_fast.pruning.generations import Prompts
from layercoop_fast.pruning.goal import ResolvedGoal, allowed_by, resolve
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.pruning.timer import StageTimer
from layercoop_fast.repair.fit import check_repairable
from layercoop_fast.repair.options import check_compute
from layercoop_fast.repair.texts import check_texts
from layercoop_fast.search.base import get_method
from layercoop_fast.search.constraints import ConstrainedFamily
from layercoop_fast.search.finalists import check_finalists
from layercoop_fast.search.settle import check_settling
from layercoop_fast.texts.calibration import check_readable, read_text
from layercoop_fast.texts.mixture import texts_of
from layercoop_fast.texts.own_text import is_own
from layercoop_fast.texts.protocols import check_chosen_on


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched on.

    Attributes:
        model: the checkpoint as it was named.
        game: the model on the calibration text.
        heldout: the same model on the held-out text, where there is one.
        allowed: the masks to choose from.
        goal: how much has to go.
        prompts: what both models continue for the report.
        timer: measures the stages.
    """

    model: str
    game: ModelGame
    heldout: ModelGame | None
    allowed: ConstrainedFamily
    goal: ResolvedGoal
    prompts: Prompts | None
    timer: StageTimer

    def may_win(self, mask: Masks) -> bool:
        """Whether a mask (bool [n]) is one that may be chosen."""
        return self.goal.target.wants(mask) and self.allowed.check(mask) is None


def check_places(out: Path, model: str, request: PruneRequest) -> None:
    """Raise `RequestError` where `out` cannot be written, or would replace the model or the store."""
    check_target(out, folder=True, force=request.force)
    if Path(model).exists():
        check_spared(out, "model", model, "write to another folder")
    if request.store is not None:
        check_spared(out, "store", request.store, "keep the store elsewhere")


def check_request(request: PruneRequest) -> None:
    """Raise `RequestError` for what can be seen before anything is opened."""
    get_method(request.method)
    if request.budget is not None and request.budget < 1:
        raise RequestError(f"the budget must be at least 1 mask, not {request.budget}")
    if request.is_empty and request.memory is not None:
        raise RequestError(
            "say how much to remove: memory= is what stored states may take while masks are measured, and a size "
            "for the weights is fit=2GiB"
        )
    request.check()
    if request.samples < 0:
        raise RequestError(f"the samples must be 0 or more, not {request.samples}")
    _check_repair(request)
    if request.settle is None and request.most_windows != MOST_WINDOWS:
        raise RequestError("most_windows= belongs to settle=: leave it out")
    _check_search(request)
    if request.nested:
        check_nested(request.method, settles=request.settle is not None, finalists=request.finalists)


def _check_search(request: PruneRequest) -> None:
    if not request.search_repaired:
        return
    if request.repair is False:
        raise RequestError("search_repaired=True chooses masks for their repair, which repair=False leaves out")
    for name in ("nested", "settle", "workers", "offload"):
        if getattr(request, name):
            raise RequestError(f"search_repaired=True and {name}= do not go together: leave one of the two out")


def _check_repair(request: PruneRequest) -> None:
    wanted, texts, offload = request.repair, request.repair_text, request.offload
    if wanted and offload:
        raise RequestError("repair=True needs all weights in memory: leave it out, or offload=")
    if wanted is False and texts is not None:
        raise RequestError("a text to fit a repair to (repair_text=) contradicts repair=False")
    if offload and texts is not None:
        raise RequestError("nothing is repaired with offload=: leave repair_text= out")
    check_texts(texts, request.repair_tokens)
    check_compute(request.repair_compute)
    for spec in texts or ():
        check_readable(spec)  # reported now and not after the search
    check_finalists(request.finalists, repairs=wanted is not False and not offload)


@contextmanager
def opened(model: str, request: PruneRequest, timer: StageTimer) -> Iterator[Problem]:
    """Open everything. Store and workers are closed when the block ends, whichever way."""
    game = None
    check_chosen_on([spec for spec, _ in texts_of(request.calibration)])
    try:
        with timer("load", "opening the model"):
            game = ModelGame.from_pretrained(
                model, request.calibration, **values_of(request, GameOptions), on_progress=timer.progress
            )
            _check_game(request, game)
            allowed = allowed_by(request, game)
            timer.tell("working out how much has to go", 0)  # which may measure every block
            goal = resolve(request, game, allowed)
            timer.tell("working out how much has to go", 1)
            if request.nested:
                check_counted(goal.target)
            heldout = None
            if request.heldout is not None:
                heldout = on_other_text(game, request.heldout, request.windows, request.tokens, request.seed)
            found = Problem(model, game, heldout, allowed, goal, _prompts(request, game), timer)
        yield found
    finally:
        if game is not None:
            game.close()


def _check_game(request: PruneRequest, game: ModelGame) -> None:
    """Raise `RequestError` for what this model or this utility cannot do."""
    if is_quantised(game.checkpoint.model):
        if game.masked.players.sublayers is not None:
            raise RequestError(
                "halves of blocks are written as zeros, which this model's quantisation does not take: use layers as "
                "players, or prune the model first and quantise the result (layercoop-fast quantise)"
            )
        if request.repair or request.repair_text is not None or request.finalists > 1 or request.search_repaired:
            check_repairable(game)
    if request.search_repaired and not game.n_windows:
        raise RequestError(
            "search_repaired=True measures on windows of text: use a text and one of its utilities, not items"
        )
    if request.settle is not None:
        check_settling(game, request.settle, request.most_windows)


def _prompts(request: PruneRequest, game: ModelGame) -> Prompts | None:
    """Prompts from the held-out text, or the built-in one; None where nothing can be read or written."""
    if request.offload or not request.samples:
        return None
    if game.checkpoint.tokenizer is None or not game.checkpoint.model.can_generate():
        return None
    builtin = request.heldout is None or is_own(request.heldout) or not game.n_windows
    text = read_text("builtin-heldout" if builtin else str(request.heldout))
    try:
        return Prompts.cut(text, game.checkpoint.tokenizer, request.samples, game.masked.skeleton.max_tokens)
    except RequestError:  # the text is too short for this many prompts
        return None
