"""The stages of `prune`: each is told once what was asked, and then called with what the ones before it found.

The last, which writes the folder, is in `pruning/writing.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import check_spared, check_target
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.other_text import on_other_text
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.pruning.family import check_counted, family_record
from layercoop_fast.pruning.generations import Prompts
from layercoop_fast.pruning.goal import Budget, Limits, Spending, resolve
from layercoop_fast.pruning.record import quality_of
from layercoop_fast.repair.fit import Repaired, check_repairable
from layercoop_fast.repair.texts import check_texts
from layercoop_fast.search import nested
from layercoop_fast.search.base import Choice, get_method
from layercoop_fast.search.by_cost import search_by_cost
from layercoop_fast.search.constraints import Constraints
from layercoop_fast.search.finalists import best_repaired, check_finalists
from layercoop_fast.search.settle import check_settling, settle
from layercoop_fast.texts.calibration import Calibration, read_text
from layercoop_fast.texts.mixture import Texts, load_texts


def check_places(out: Path, model: str, store: str | Path | None, *, force: bool) -> None:
    """Raise `RequestError` where `out` cannot be written, or would take the model or the store with it."""
    check_target(out, folder=True, force=force)
    if Path(model).exists():
        check_spared(out, "model", model, "write to another folder")
    if store is not None:
        check_spared(out, "store", store, "keep the store elsewhere")


class Watch:
    """Seconds of each stage, and who is told how far it is."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str, said: str | None = None) -> Iterator[None]:
        """Time a stage; where something is `said`, tell that it began and that it is done."""
        started = time.perf_counter()
        self.tell(said, 0)
        try:
            yield
        finally:
            took = self.seconds.get(stage, 0.0) + time.perf_counter() - started  # some stages come in two parts
            self.seconds[stage] = round(took, 3)
        self.tell(said, 1)

    def tell(self, said: str | None, done: int) -> None:
        """Tell of something that is one step."""
        if self.progress is not None and said is not None:
            self.progress(said, done, 1)


@dataclass(frozen=True, eq=False)
class Opened:
    """What is played on.

    Attributes:
        game: the model on the calibration text.
        heldout: the same model on the held-out text, where there is one.
        allowed: the masks to choose from.
        spending: how much has to go.
        prompts: what both models go on from for the report.
        limits: what the user ruled out.
    """

    game: ModelGame
    heldout: ModelGame | None
    allowed: Constraints
    spending: Spending
    prompts: Prompts | None
    limits: Limits

    def may_win(self, mask: Masks) -> bool:
        """Whether a mask (bool [n]) is one that may be chosen."""
        return self.spending.target.wants(mask) and self.allowed.check(mask) is None


@dataclass(frozen=True, eq=False)
class Opening:
    """Stage 1: the model, its texts, and what may go. `options` are those of `ModelGame.from_pretrained`."""

    model: str
    calibration: Texts
    budget: Budget
    limits: Limits
    heldout_spec: str | None
    samples: int
    options: dict[str, Any]

    def check(self) -> None:
        """Raise `RequestError` for what can be seen before anything is opened."""
        if self.budget.is_empty and self.options["memory"] is not None:
            raise RequestError(
                "say how much to remove: --memory is what stored states may take while masks are measured, and a size "
                "for the weights is --fit 2GiB"
            )
        self.budget.check()
        if self.samples < 0:
            raise RequestError(f"the samples must be 0 or more, not {self.samples}")

    @contextmanager
    def __call__(self, watch: Watch, search: Search, mending: Mending, settling: Settling | None) -> Iterator[Opened]:
        """Open all; store and workers are closed when the block ends, whichever way."""
        game = None
        try:
            with watch("load", "opening the model"):
                game = ModelGame.from_pretrained(
                    self.model, self.calibration, **self.options, on_progress=watch.progress
                )
                mending.check_on(game)
                if settling is not None:
                    settling.check_on(game)
                allowed = self.limits.on(game)
                watch.tell("working out how much has to go", 0)  # which may measure every block
                spending = resolve(self.budget, game, allowed)
                watch.tell("working out how much has to go", 1)
                search.check_on(spending)
                opened = Opened(game, self._heldout(game), allowed, spending, self._prompts(game), self.limits)
            yield opened
        finally:
            if game is not None:
                game.close()

    def cut(self, game: ModelGame, count: int) -> Calibration:
        """So many windows of each calibration text."""
        # The other windows of 'self' are drawn with another seed; those of a text do not depend on it.
        return load_texts(
            self.calibration,
            game.checkpoint.tokenizer,
            game.masked.skeleton,
            windows=count,
            tokens=self.options["tokens"],
            seed=self.options["seed"] + count,
            chat=self.options["chat"],
        )

    def _heldout(self, game: ModelGame) -> ModelGame | None:
        if self.heldout_spec is None:
            return None
        windows, tokens, seed = (self.options[name] for name in ("windows", "tokens", "seed"))
        return on_other_text(game, self.heldout_spec, windows, tokens, seed)

    def _prompts(self, game: ModelGame) -> Prompts | None:
        """Prompts from the held-out text, or the built-in one; None where nothing can be read or written."""
        if self.options["offload"] or not self.samples:
            return None
        if game.checkpoint.tokenizer is None or not game.checkpoint.model.can_generate():
            return None
        builtin = self.heldout_spec in (None, "self") or not game.n_windows
        text = read_text("builtin-heldout" if builtin else str(self.heldout_spec))
        try:
            return Prompts.cut(text, game.checkpoint.tokenizer, self.samples, game.masked.skeleton.max_tokens)
        except RequestError:  # a text too short for so many prompts
            return None


@dataclass(frozen=True)
class Search:
    """Stage 2: which players go."""

    method: str
    budget: int | None
    nested: bool
    seed: int

    def check(self) -> None:
        """Raise `RequestError` for an unknown method or an empty budget."""
        get_method(self.method)
        if self.budget is not None and self.budget < 1:
            raise RequestError(f"the budget must be at least 1 mask, not {self.budget}")

    def check_on(self, spending: Spending) -> None:
        """Raise `RequestError` where a family is asked for and there is none."""
        if self.nested:
            check_counted(spending.target)

    def __call__(self, opened: Opened, watch: Watch) -> Choice:
        """Search."""
        game, target, allowed = opened.game, opened.spending.target, opened.allowed
        asked: dict[str, Any] = {"seed": self.seed, "budget": self.budget, "progress": watch.progress}
        with watch("search", "searching"):
            if self.nested:
                choice = nested.search(game, target.size, allowed=allowed, **asked)
            else:
                choice = search_by_cost(self.method, game, target, allowed=allowed, **asked)
        _check_finite(game.known_worths())
        return choice


def _check_finite(worths: Floats) -> None:
    """Raise `RunError` where there are worths and none says anything: a choice among such is none."""
    if len(worths) and not np.isfinite(worths).any():
        raise RunError(
            f"the worths of the full model and of the masks measured, {len(worths)} in all, are not finite: weights "
            "are broken, or the dtype is too small for them (try --dtype float32)"
        )


@dataclass(frozen=True)
class Settling:
    """Stage 3, where asked for: more windows until the choice is sure."""

    level: float
    most_windows: int

    def check_on(self, game: ModelGame) -> None:
        """Raise `RequestError` where this game cannot grow."""
        check_settling(game, self.level, self.most_windows)

    def __call__(self, opened: Opened, choice: Choice, opening: Opening, watch: Watch) -> tuple[ModelGame, Choice]:
        """The best finalist, and the game on as many windows as it took."""
        game = opened.game
        with watch("settle"):
            return settle(
                game,
                choice,
                self.level,
                most_windows=self.most_windows,
                cut=lambda count: opening.cut(game, count),
                wanted=opened.may_win,
                seed=opening.options["seed"],
                progress=watch.progress,
            )


@dataclass(frozen=True)
class Mending:
    """Stage 4: what was cut is repaired. `wanted` None: where that helps."""

    wanted: bool | None
    texts: Sequence[str] | None
    tokens: int
    finalists: int
    offload: bool

    def check(self) -> None:
        """Raise `RequestError` for what can be seen before anything is opened."""
        if self.wanted and self.offload:
            raise RequestError("--repair needs all weights in memory: leave it out, or --offload")
        if self.wanted is False and self.texts is not None:
            raise RequestError("a text to fit a repair to (--repair-text) contradicts --no-repair")
        if self.offload and self.texts is not None:
            raise RequestError("nothing is repaired with --offload: leave --repair-text out")
        check_texts(self.texts, self.tokens)
        for spec in self.texts or ():
            if spec != "self":
                read_text(spec)  # or it would be after the search that it cannot be read
        check_finalists(self.finalists, repairs=self.wanted is not False and not self.offload)

    def check_on(self, game: ModelGame) -> None:
        """Raise `RequestError` where a checkpoint would need new weights that its quantisation does not take."""
        if not is_quantised(game.checkpoint.model):
            return
        if game.masked.players.sublayers is not None:
            raise RequestError(
                "halves of blocks are written as zeros, which this model's quantisation does not take: use layers as "
                "players, or prune the model first and quantise what comes out (layercoop-fast quantise)"
            )
        if self.wanted or self.texts is not None or self.finalists > 1:
            check_repairable(game)

    def __call__(
        self, game: ModelGame, opened: Opened, choice: Choice, opening: Opening, watch: Watch
    ) -> tuple[Choice, Repaired | None]:
        """The choice, or the finalist that is worth more repaired, and its repair; None where there is none to be."""
        if self.wanted is False or self.offload or is_quantised(game.checkpoint.model):
            return choice, None
        with watch("repair", "fitting a repair"):
            return best_repaired(
                game,
                choice,
                self.finalists,
                opened.may_win,
                self.texts,
                tokens=self.tokens,
                required=self.wanted is True,
                heldout=() if opening.heldout_spec is None else [opening.heldout_spec],
                seed=opening.options["seed"],
                progress=watch.progress,
            )


@dataclass(frozen=True)
class Judged:
    """What the models are worth on the calibration text and the held-out one, and every size of a family."""

    quality: dict[str, Any]
    unseen: dict[str, Any] | None
    family: dict[str, Any] | None


def judged(game: ModelGame, opened: Opened, choice: Choice, repaired: Repaired | None, watch: Watch) -> Judged:
    """Stage 5: measure the full and the pruned model."""
    pair = np.stack([np.ones_like(choice.mask), choice.mask])
    with watch("evaluate", "measuring both models"):
        quality = quality_of(game, pair, repaired)
        _check_finite(game.known_worths())  # of methods that measure nothing these are the first
        if quality["nll"]["pruned"] is None:
            raise RunError(
                f"what {choice.method} chose leaves a model whose NLL is not finite: weights are broken, or the dtype "
                "is too small for them (try --dtype float32, or another method)"
            )
        return Judged(
            quality,
            None if opened.heldout is None else quality_of(opened.heldout, pair, repaired),
            family_record(game, opened.heldout, choice),
        )
