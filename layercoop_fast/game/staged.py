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

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.store import mask_key
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masked.scores import Scores, joined, same_bits
from layercoop_fast.masks.types import Floats, Masks, check_masks

if TYPE_CHECKING:
    from typing_extensions import Self


class WindowGame(Protocol):
    """A game whose scores belong to windows, of which some can be measured without the others.

    Attributes:
        masked: whose stored states are freed between parts.
        known: what the game knows.
        source: the game that measures for this one, where there is one.
    """

    masked: MaskedModel
    known: KnownScores
    source: Self | None

    @property
    def n_players(self) -> int:
        """Number of players n."""

    @property
    def n_windows(self) -> int:
        """Number of windows W."""

    def part(self, first: int, last: int) -> Self:
        """The same game on windows `first` to `last` − 1 alone."""

    def window_scores(self, masks: Masks) -> Scores:
        """Scores of masks, bool [M, n]: float64 [M, W]."""

    def learn(self, masks: Masks, scores: Scores) -> None:
        """Take in the scores (float64 [M, W]) of masks (bool [M, n]) that were measured in parts."""

    def judge(self, scores: Scores, full: Floats) -> tuple[Floats, Floats]:
        """Worths and mean NLL, float64 [M], of scores on the first windows, and the full model's NLL there."""


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

    def __init__(self, game: WindowGame, ends: Sequence[int]) -> None:
        n_windows = game.n_windows
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
            game if len(self.ends) == 1 else game.part(first, end) for first, end in zip(firsts, self.ends, strict=True)
        ]
        self._full = np.ones((1, self.n_players), dtype=np.bool_)

    @cached_property
    def promotes(self) -> bool:
        """Whether the full model's scores by parts are those of the game, bit for bit: then so are those of masks."""
        whole, parts = self.game.window_scores(self._full), [part.window_scores(self._full) for part in self._parts]
        return same_bits(joined(parts), whole)

    def window_scores(self, masks: Masks, n_windows: int) -> Scores:
        """Mean NLL, and KL where the game's utility needs it, on each of the first windows: float64 [M, n_windows].

        `n_windows` is one of `ends`; raises `RequestError` for another.
        """
        masks = check_masks(masks, self.n_players)
        if n_windows not in self.ends:
            raise RequestError(f"this game's stages have {', '.join(map(str, self.ends))} windows, not {n_windows}")
        if len(self.ends) == 1:
            return self.game.window_scores(masks)
        known = np.array([self.promotes and self.game.known.holds(mask) for mask in masks], dtype=np.bool_)
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
        return self.game.judge(scores, full)[0]

    def _few(self, masks: Masks, n_windows: int) -> Scores:
        """Scores by the parts that make up the first windows."""
        parts = self._parts[: self.ends.index(n_windows) + 1]
        if self.promotes:
            self._lend(masks, parts)
        found = []
        # Stored states of one part at a time: a memory budget holds for the game and its parts together.
        self.game.masked.windows.free()
        for part in parts:
            found.append(part.window_scores(masks))
            part.masked.windows.free()
        return joined(found)

    def _lend(self, masks: Masks, parts: Sequence[WindowGame]) -> None:
        """Tell the sources of the parts what the source of a run knows about masks on all windows."""
        source = self.game.source
        if source is None:
            return
        known = [mask for mask in masks if source.known.holds(mask)]
        if not known:
            return
        scores, first = source.window_scores(np.stack(known)), 0
        for part in parts:
            end = first + part.n_windows
            for mask, nll, kl in zip(known, scores.nll[:, first:end], scores.kl[:, first:end], strict=True):
                if part.source is not None:
                    part.source.known.lend(mask_key(mask), Scores(nll, kl))
            first = end

    def _promote(self, masks: Masks) -> None:
        """Measure the missing windows of masks, and let the game know what is then known in full."""
        masks = np.unique(masks, axis=0)
        self.game.learn(masks, self._few(masks, self.ends[-1]))
