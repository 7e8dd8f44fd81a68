"""A game on a model that answers from a store of measured masks, and counts what measuring them again would cost.

    game = Replay.open(small_model(), "novels.txt", store="worths.store")
    choice = coop.search(game, 10, seed=3)
    game.passes                                       # of the full model over the text, as if nothing were known

Searches differ in which masks they ask and on how many windows, not in what is measured: with a store a study of many
searches, seeds or budgets takes the time of the masks that are new to all of them. Costs are those of a run by itself
with memory for every state: the distinct kept prefixes of each call's unknown masks, part by part, on its tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from layercoop_fast import ModelGame
from layercoop_fast.game.utility import Utility, get_utility
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Floats, Masks, Progress


@dataclass
class Passes:
    """The answers of rules that mask nothing (`masked/importance.py`)."""

    influence: Floats | None = None
    taylor: Floats | None = None
    angles: dict[int, Floats] = field(default_factory=dict)


class Replay:
    """What a search may ask of a game on windows, with nothing known to it at first.

    Args:
        source: the game that measures, and keeps what it measured. Its utility says whether divergences are known.
        utility: the worth of this game.

    Attributes:
        token_evals: layers times tokens that a run by itself would have spent.
        masks: distinct masks asked, on however few windows.
    """

    def __init__(self, source: ModelGame, utility: str = "ppl_ratio", shared: Passes | None = None) -> None:
        self.source = source
        self._shared = Passes() if shared is None else shared
        self.utility: Utility = get_utility(utility)  # type: ignore[assignment]
        self.n_players = source.n_players
        self.masked = source.masked
        self.windows = source.masked.windows
        self.n_windows = source.n_windows
        self.calibration = source.calibration
        self.token_evals = 0
        self.asked: set[bytes] = set()
        self._known: set[tuple[bytes, int]] = set()
        self._has_teacher = False

    @classmethod
    def open(cls, model: str, calibration: str, *, store: Path, **options: Any) -> Replay:
        """A game on a checkpoint in fp32, which is measured where its store does not know."""
        return cls(ModelGame.from_pretrained(model, calibration, store=store, **{"dtype": "float32", **options}))

    @property
    def passes(self) -> float:
        """What was spent, in passes of the full model over all windows."""
        return self.token_evals / (self.masked.skeleton.n_layers * self.windows.ids.numel())

    @property
    def masks(self) -> int:
        """Distinct masks asked, the full model not among them."""
        return len(self.asked - {np.ones(self.n_players, dtype=np.bool_).tobytes()})

    def __call__(self, masks: Masks) -> Floats:
        """Worths of masks (bool [M, n]), float64 [M]."""
        return self.staged([self.windows.n_windows]).worths(masks, self.windows.n_windows)

    def staged(self, ends: Sequence[int]) -> _Staged:
        """This game on growing numbers of its windows."""
        return _Staged(self, ends)

    def with_utility(self, utility: str) -> Replay:
        """The same game with another worth; its costs count here too."""
        return self if get_utility(utility) is self.utility else _Counted(self, utility)

    def block_influence(self) -> Floats:
        """As of `ModelGame`, one pass."""
        self._charge(self.masked.players.n_units, self.windows.n_windows)
        if self._shared.influence is None:
            self._shared.influence = self.source.block_influence()
        return self._shared.influence

    def angular_distances(self, run_length: int) -> Floats:
        """As of `ModelGame`, one pass."""
        self._charge(self.masked.players.n_units, self.windows.n_windows)
        if run_length not in self._shared.angles:
            self._shared.angles[run_length] = self.source.angular_distances(run_length)
        return self._shared.angles[run_length]

    def taylor_importance(self, progress: Progress | None = None) -> Floats:
        """As of `ModelGame`, a forward pass and a backward one that counts twice."""
        self._charge(3 * self.masked.players.n_units, self.windows.n_windows)
        if self._shared.taylor is None:
            self._shared.taylor = self.source.taylor_importance(progress)
        return self._shared.taylor

    def note(self, masks: Masks, n_windows: int) -> None:
        """Called for masks (bool [M, n]) that a search now knows on the first windows, after they were paid for."""

    def _charge(self, units: int, n_windows: int) -> None:
        tokens = self.windows.ids.shape[1] * n_windows
        self.token_evals += units * tokens // (1 if self.masked.players.sublayers is None else 2)

    def _pay(self, masks: Masks, first: int, end: int) -> None:
        """Count measuring masks (bool [M, n]) on windows `first` to `end` − 1, where they are not known there."""
        everything = np.ones((1, self.n_players), dtype=np.bool_)
        if self.utility.needs_teacher and not self._has_teacher:
            self._has_teacher = True
            self._charge(self.masked.players.n_units, self.windows.n_windows)
        unknown = {
            mask.tobytes(): mask
            for mask in np.concatenate([masks, everything])
            if (mask.tobytes(), first) not in self._known
        }
        if unknown:
            self._known |= {(key, first) for key in unknown}
            self.asked |= set(unknown)
            fresh = np.stack(list(unknown.values()))
            self._charge(count_evaluations(self.masked.players.unit_masks(fresh)).plan, end - first)


class _Counted(Replay):
    """A view with another worth, whose costs count in the game it is a view of."""

    def __init__(self, owner: Replay, utility: str) -> None:
        super().__init__(owner.source, utility, owner._shared)
        self._owner = owner

    def _charge(self, units: int, n_windows: int) -> None:
        super()._charge(units, n_windows)
        self._owner._charge(units, n_windows)


class _Staged:
    """The game on growing numbers of windows, as `StagedGame` is it."""

    def __init__(self, game: Replay, ends: Sequence[int]) -> None:
        self.game, self.ends = game, tuple(ends)

    def window_scores(self, masks: Masks, n_windows: int) -> Scores:
        first = 0
        for end in self.ends[: self.ends.index(n_windows) + 1]:
            self.game._pay(masks, first, end)
            first = end
        self.game.note(masks, n_windows)
        scores = self.game.source.window_scores(masks)
        return Scores(scores.nll[:, :n_windows], scores.kl[:, :n_windows])

    def worths(self, masks: Masks, n_windows: int) -> Floats:
        scores = self.window_scores(masks, n_windows)
        full = self.window_scores(np.ones((1, self.game.n_players), dtype=np.bool_), n_windows).nll[0]
        text = self.game.source.fingerprints["calibration"]
        with np.errstate(all="ignore"):
            worths, _ = self.game.utility.judge(scores.nll, scores.kl, full, text)
        return worths
