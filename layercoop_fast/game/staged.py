"""A game on some of its windows, and masks that rise from few windows to all.

The NLL of a window does not depend on the other windows, so a mask measured on the first two of ten windows needs only
the other eight to be known in full:

    staged = game.staged([2, 5, 10])
    few = staged.window_scores(masks, 2)                 # nll and kl, float64 [M, 2]
    more = staged.window_scores(masks[best], 5)          # measures windows 2 to 4 alone
    all_of_them = staged.worths(masks[best], 10)         # now `game` knows these masks too

A search that races masks against each other spends little on those that fall behind.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.runs import Kept, run_on
from layercoop_fast.game.store import mask_key
from layercoop_fast.game.utility import Utility, get_utility, names_objective
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Floats, Masks, check_masks
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.items import Items, check_choices

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame


def part_of(game: ModelGame, first: int, last: int) -> ModelGame:
    """The same game on windows `first` to `last` − 1 alone: a game of its own, cheap to make.

    It shares the model, the fast blocks and the store file (where there is one it is a further game there, under the
    fingerprint of its own windows). What it costs counts in its own `evaluations`, and in `token_evals` of `game` too.

    Raises `RequestError` for windows that are not there.
    """
    require_windows(game, "parts")
    n_windows = game.windows.n_windows
    if not 0 <= first < last <= n_windows:
        raise RequestError(f"windows {first} to {last - 1} of a game of {n_windows} windows are not there")
    domains = None if game.domains is None else game.domains.part(first, last)
    pictures = game.windows.pictures
    if pictures is not None:
        pictures = replace(pictures, inputs=pictures.part(first, last, n_windows))
    ids, spec = game.calibration.ids[first:last], game.calibration.spec
    return on_windows(game, Calibration(ids, spec, domains, pictures=pictures))


def on_windows(game: ModelGame, calibration: Calibration) -> ModelGame:
    """The same game on other windows of the same length; what it costs counts in `game` too, as with `part_of`."""
    part = view_of(game, calibration, game.utility)
    part.evaluations = type(game.evaluations)()
    part.charged = (part.evaluations, *game.charged)
    return part


def require_windows(game: ModelGame, what: str) -> None:
    """Raise `RequestError` for a game on items with options, whose sequences share windows."""
    if not game.has_windows:
        raise RequestError(f"{what} are of windows of a text: this game's calibration is items with options")


def with_utility(game: ModelGame, utility: str | Utility | ChoiceUtility) -> ModelGame:
    """The same game with another worth; `game` itself where that is its own.

    It shares everything but the numbers measured, counts of evaluations included. In a store file it is a further game.
    A game on the worst of several texts stays one, where a name says nothing about it ("kl:mean" does).

    Raises `RequestError` for a worth of text where this game is one on items with options, and the other way round.
    """
    if isinstance(utility, str) and isinstance(game.utility, Utility) and not names_objective(utility):
        utility = f"{utility}:{game.utility.objective}"
    utility = get_utility(utility)
    if utility is game.utility:
        return game
    check_choices(game.calibration, utility, game.windows.score_every)
    return view_of(game, game.calibration, utility)


def view_of(
    game: ModelGame, calibration: Calibration | Items, utility: Utility | ChoiceUtility, *, stored: bool = True
) -> ModelGame:
    """The same game on other windows of the same length, with another worth, or both; nothing is checked again.

    It shares everything but the numbers measured. In a store file it is a further game, if it is to be `stored`.
    """
    if game.source is not None:
        view = run_on(kept_view(game.source, calibration, utility))
        view.evaluations, view.charged = game.evaluations, game.charged
        return view
    view = copy.copy(game)
    view.utility = utility
    if calibration is not game.calibration:
        view.calibration = calibration
        pictures = None if isinstance(calibration, Items) else calibration.pictures
        view.windows = Windows(game.skeleton, calibration.ids, game.windows.score_every, pictures=pictures)
        view.units = game.units.on(view.windows)
        view.__dict__.pop("flops", None)  # of other windows
    view.scorer = game.scorer.on(view.windows)
    view._has_teacher = False
    # From the other's, so that the weights are not read once more.
    view._fingerprints = {**game.fingerprints, "calibration": calibration.fingerprint, "utility": utility.name}
    store = game._known.store if stored else None
    view._known = KnownScores() if store is None else view._claim(store, beside=True)
    view.kept = Kept()
    return view


def kept_view(source: ModelGame, calibration: Calibration | Items, utility: Utility | ChoiceUtility) -> ModelGame:
    """`view_of` a source of runs, the same one for all of them."""
    views, key = source.kept.views, (json.dumps(calibration.fingerprint), utility.name)
    if key not in views:
        views[key] = view_of(source, calibration, utility)
    return views[key]


def anew(game: ModelGame) -> ModelGame:
    """The same game as if it had just been made: nothing known, nothing counted, no store."""
    view = copy.copy(game)
    view.scorer = game.scorer.on(view.windows)
    view._has_teacher = False
    view.evaluations = type(game.evaluations)()
    view.charged = (view.evaluations,)
    view._known = KnownScores()
    view.source, view.kept = None, Kept()
    return view


def beside(parts: Sequence[Scores]) -> Scores:
    """Scores (float64 [M, w] each) of the same masks on windows that follow each other, put together: [M, W]."""
    return Scores(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("nll", "kl")))


def same_bits(one: Scores, other: Scores) -> bool:
    """Whether scores are equal bit for bit, those that are no numbers included."""
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in ("nll", "kl"))


def hand_over(game: ModelGame, masks: Masks, scores: Scores) -> None:
    """Let a game know masks (bool [M, n]) by their scores on all its windows, float64 [M, W], measured in parts."""
    for mask, nll, kl in zip(masks, scores.nll, scores.kl, strict=True):
        game.learn(mask, Scores(nll, kl))
    (game if game.source is None else game.source)._known.commit()


class StagedGame:
    """A game whose masks are measured on growing numbers of windows; made by `ModelGame.staged`.

    A window that a mask was measured on is never measured again: not at a later stage, and not by the game itself once
    the mask has been through the last one. That holds where windows have the same bits among few as among many, which
    the full model finds out at the first call. Some products do not do that (torch's in bf16 on processors with AMX
    take another way below some hundred rows): there the parts keep to themselves, and the last stage is the game's own
    measurement, so that what it calls a worth is always what it would have measured.

    Args:
        game: the game on all windows.
        ends: how many of the first windows each stage has, growing, the last all W.

    Raises `RequestError` for ends that do not grow to W.
    """

    def __init__(self, game: ModelGame, ends: Sequence[int]) -> None:
        n_windows = game.windows.n_windows
        self.ends = tuple(int(end) for end in ends)
        grows = all(a < b for a, b in zip((0, *self.ends), self.ends, strict=False))
        if not self.ends or not grows or self.ends[-1] != n_windows:
            raise RequestError(
                f"stages must have growing numbers of windows, the last all {n_windows}, not {list(self.ends)}"
            )
        self.game = game
        self.n_players = game.n_players
        firsts = (0, *self.ends[:-1])
        self._parts = [
            game if len(self.ends) == 1 else part_of(game, first, end)
            for first, end in zip(firsts, self.ends, strict=True)
        ]
        self._full = np.ones((1, self.n_players), dtype=np.bool_)

    @cached_property
    def promotes(self) -> bool:
        """Whether the full model's scores by parts are those of the game, bit for bit: then so are those of masks."""
        whole, parts = self.game.window_scores(self._full), [part.window_scores(self._full) for part in self._parts]
        return same_bits(beside(parts), whole)

    def window_scores(self, masks: Masks, n_windows: int) -> Scores:
        """Mean NLL, and KL where the game's utility needs it, on each of the first windows: float64 [M, n_windows].

        `n_windows` is one of `ends`; raises `RequestError` for another.
        """
        masks = check_masks(masks, self.n_players)
        if n_windows not in self.ends:
            raise RequestError(f"this game's stages have {', '.join(map(str, self.ends))} windows, not {n_windows}")
        if len(self.ends) == 1:
            return self.game.window_scores(masks)
        known = np.array([self.promotes and self.game.holds(mask) for mask in masks], dtype=np.bool_)
        if n_windows == self.ends[-1]:
            if self.promotes:
                self._promote(masks[~known])
            return self.game.window_scores(masks)
        nll, kl = np.empty((len(masks), n_windows)), np.empty((len(masks), n_windows))
        whole, few = self.game.window_scores(masks[known]), self._few(masks[~known], n_windows)
        nll[known], kl[known] = whole.nll[:, :n_windows], whole.kl[:, :n_windows]
        nll[~known], kl[~known] = few.nll, few.kl
        return Scores(nll, kl)

    def worths(self, masks: Masks, n_windows: int) -> Floats:
        """Worths on the first windows, float64 [M]: the game's utility of the means over them."""
        scores = self.window_scores(masks, n_windows)
        full = self.window_scores(self._full, n_windows).nll[0]
        with np.errstate(all="ignore"):  # overflow to infinity and NaN are results here
            text = self.game.fingerprints["calibration"]
            worths, _ = self.game.utility.judge(scores.nll, scores.kl, full, text)
        return worths

    def _few(self, masks: Masks, n_windows: int) -> Scores:
        """Scores by the parts that make up the first windows."""
        parts = self._parts[: self.ends.index(n_windows) + 1]
        if self.promotes:
            self._lend(masks, parts)
        found = []
        # Stored states of one part at a time: a memory budget holds for the game and its parts together.
        self.game.windows.free()
        for part in parts:
            found.append(part.window_scores(masks))
            part.windows.free()
        return beside(found)

    def _lend(self, masks: Masks, parts: Sequence[ModelGame]) -> None:
        """Of masks that a run's source knows on all windows tell those of the parts what they are on some."""
        source = self.game.source
        if source is None:
            return
        known = [mask for mask in masks if source.holds(mask)]
        if not known:
            return
        scores, first = source.window_scores(np.stack(known)), 0
        for part in parts:
            end = first + part.windows.n_windows
            for mask, nll, kl in zip(known, scores.nll[:, first:end], scores.kl[:, first:end], strict=True):
                if part.source is not None:
                    part.source._known.lend(mask_key(mask), Scores(nll, kl))
            first = end

    def _promote(self, masks: Masks) -> None:
        """Measure the missing windows of masks and hand what is then known in full to the game."""
        masks = np.unique(masks, axis=0)
        hand_over(self.game, masks, self._few(masks, self.ends[-1]))
