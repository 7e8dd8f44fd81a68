"""Evolution: one parent, offspring that differ from it by a few swaps, and a race among them on growing text.

    start      the best of a few random masks on the first windows
    mutation   a kept and a removed player are exchanged, one to three times: the size stays
    selection  a race of the offspring: all on the first windows, the best on more, the best of those on all windows; a
               winner replaces the parent only if its worth is higher, so that no generation is worse than the last

The worth is −KL(full model ‖ model without) where the game is on a model. Source: EvoPress, arXiv 2410.14649. Two
things differ: the windows of a stage are always the first ones, so that no mask is measured twice on a window; and a
kept player may be exchanged with any removed one, where EvoPress swaps attention with attention and MLP with MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from layercoop_fast.masks.types import Floats, Game, Masks, play
from layercoop_fast.search.base import Asked, Choice, budget_or, finite_or_none, search_method
from layercoop_fast.texts.domains import first_windows

DEFAULT_BUDGET = 500
OFFSPRING = 16
INITIAL = 16
# Share of the windows at each stage before the last, and the number of offspring that survive it.
_STAGES = ((0.2, 4), (0.5, 2))
_MOST_SWITCHES = 3
# The search ends after this many generations in a row without a new mask: the neighbourhood is exhausted.
_PATIENCE = 10


class _Judge(Protocol):
    """Worths on the first windows, as `StagedGame` gives them."""

    @property
    def ends(self) -> Sequence[int]: ...

    def worths(self, masks: Masks, n_windows: int, /) -> Floats: ...


class _Plain:
    """A game without windows, as a race of one stage."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.ends = (1,)

    def worths(self, masks: Masks, n_windows: int) -> Floats:
        return play(self.game, masks)


@search_method
def search(asked: Asked) -> Choice:
    """Evolve a mask that removes `n_remove` players until `budget` distinct masks (500 by default) were measured.

    A mask counts once, even if it was measured on some windows only. Every mask has to be `allowed`: a mutant that is
    not is replaced by the nearest allowed mask. On a `ModelGame` with text, masks race on its windows by their
    divergence; on any other game each mask is measured in full by its own worth. NaN worths rank last.

    Raises `RequestError` for a budget below 1, and where no mask is allowed.
    """
    budget, judge = budget_or(asked.budget, DEFAULT_BUDGET), _judge(asked.game)
    evolution = _Evolution(judge, asked, budget)
    start = parent = evolution.first()
    began = worth = evolution.worth_in_full(parent)
    generation = idle = 0
    while evolution.left > 0 and idle < _PATIENCE:
        known = evolution.n_masks
        winner, winners_worth = evolution.generation(parent)
        if winners_worth > worth:
            parent, worth = winner, winners_worth
        idle = idle + 1 if evolution.n_masks == known else 0
        generation += 1
        asked.report("masks looked at", evolution.n_masks, budget)
    details = {
        "start": np.flatnonzero(~start).tolist(),
        "start_worth": finite_or_none(began),
        "worth": finite_or_none(worth),
        "generations": generation,
        "windows_by_stage": list(judge.ends),
    }
    return Choice(parent, "evopress", None, evolution.n_masks, details)


def _judge(game: Any) -> _Judge:
    n_windows = int(getattr(game, "n_windows", 0))
    if not n_windows:
        return _Plain(game)
    domains = game.calibration.domains
    ends = sorted({*(first_windows(share, n_windows, domains) for share, _ in _STAGES), n_windows})
    judge: _Judge = game.with_utility("kl").staged(ends)
    return judge


class _Evolution:
    """Mutation and selection; counts every mask that was measured."""

    def __init__(self, judge: _Judge, asked: Asked, budget: int) -> None:
        self._judge, self._asked, self._budget = judge, asked, budget
        self._rng = np.random.default_rng(asked.seed)
        self._seen: set[bytes] = set()

    @property
    def n_masks(self) -> int:
        return len(self._seen)

    @property
    def left(self) -> int:
        """Number of new masks that the budget still allows."""
        return self._budget - len(self._seen)

    def first(self) -> Masks:
        """The best of the initial masks on the first windows, `bool[n]`."""
        drawn = [self._asked.least_valuable(self._rng.random(self._asked.n)) for _ in range(min(INITIAL, self._budget))]
        masks, _ = self._best(np.unique(np.stack(drawn), axis=0), self._judge.ends[0], 1)
        best: Masks = masks[0]
        return best

    def worth_in_full(self, mask: Masks) -> float:
        """Worth of one mask (`bool[n]`) on all windows, −infinity for NaN."""
        return float(self._best(mask[None], self._judge.ends[-1], 1)[1][0])

    def generation(self, parent: Masks) -> tuple[Masks, float]:
        """The winner among the offspring of `parent` (`bool[n]`), and its worth on all windows."""
        masks = self._offspring(parent)
        stages = list(zip(self._judge.ends[:-1], (survivors for _, survivors in _STAGES), strict=False))
        for n_windows, survivors in stages:
            masks, _ = self._best(masks, n_windows, survivors)
        winners, worths = self._best(masks, self._judge.ends[-1], 1)
        return winners[0], float(worths[0])

    def _offspring(self, parent: Masks) -> Masks:
        """Distinct mutants, with as many new ones as the budget allows; the parent alone where there are none."""
        found: dict[bytes, Masks] = {}
        left = self.left
        for _ in range(OFFSPRING):
            mutant = self._mutant(parent)
            key = mutant.tobytes()
            new = key not in self._seen
            if key in found or (new and left <= 0):
                continue
            found[key] = mutant
            left -= new
        return np.stack(list(found.values())) if found else parent[None]

    def _mutant(self, parent: Masks) -> Masks:
        """`parent` with one to three pairs of players exchanged, one pair most often."""
        mask = parent.copy()
        for _ in range(int(self._rng.integers(1, _MOST_SWITCHES + 1, size=2).min())):
            out, back = self._rng.choice(np.flatnonzero(mask)), self._rng.choice(np.flatnonzero(~mask))
            mask[out], mask[back] = False, True
        # A small random part decides between masks that are equally near.
        return self._asked.least_valuable(mask + 0.1 / len(mask) * self._rng.random(len(mask)))

    def _best(self, masks: Masks, n_windows: int, survivors: int) -> tuple[Masks, Floats]:
        """The best of `masks` on the first windows, best first, and their worths."""
        self._seen.update(mask.tobytes() for mask in masks)
        worths = self._judge.worths(masks, n_windows)
        worths = np.where(np.isnan(worths), -np.inf, worths)
        order = np.argsort(-worths, kind="stable")[:survivors]
        return masks[order], worths[order]
