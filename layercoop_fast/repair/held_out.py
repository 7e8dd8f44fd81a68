"""Held-out windows under the pruned model: its stream over them, which is kept, and what its predictions score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.scoring import FusedScorer, GeneralScorer, Scorer
from layercoop_fast.masked.units import GeneralUnits
from layercoop_fast.masked.windows import Windows
from layercoop_fast.repair.streams import is_fast

NO_MAPS: Mapping[int, Tensor] = MappingProxyType({})


class HeldOut:
    """The pruned model's stream over a few windows, which is kept, and the scores of its predictions.

    Args:
        game: its model and players, and the way its units are computed.
        windows: the game's own or others; fast blocks run on them where they are as long as the game's.
        scorer: of these windows, where there is one already.
    """

    def __init__(self, game: ModelGame, windows: Windows, scorer: Scorer | None = None) -> None:
        self.windows = windows
        own = windows is game.masked.windows or is_fast(game, windows.ids)
        self.units = game.masked.units if own else GeneralUnits(windows, game.masked.players.run)
        self.scorer = _scorer(game, windows) if scorer is None else scorer
        self._state = windows.context(1).embedding[: windows.n_windows].clone()
        self._at = 0

    @torch.inference_mode()
    def advance(self, unit: int, kept: Sequence[int]) -> None:
        """Run the kept units before `unit` that have not run yet, with the model's weights as they are."""
        self._run(self._state, kept, unit)
        self._at = max(self._at, unit)

    @torch.inference_mode()
    def scores(self, kept: Sequence[int], maps: Mapping[int, Tensor] = NO_MAPS) -> Scores:
        """Scores of each window with the model's weights as they are, from the kept state on.

        The stream behind each unit of `maps` becomes that matrix, float32 [H, H], times itself; behind unit −1 is
        what unit 0 receives.
        """
        return self.scorer.score(self.last(kept, maps))

    @torch.inference_mode()
    def last(self, kept: Sequence[int], maps: Mapping[int, Tensor] = NO_MAPS) -> Tensor:
        """The stream [W, T, H] that the head receives, as `scores` computes it."""
        state = self._state.clone()
        if self._at == 0 and -1 in maps:
            _map(state, maps[-1])
        self._run(state, kept, None, maps)
        return state

    def nll(self, kept: Sequence[int]) -> float:
        """Mean NLL of all windows, nats per token."""
        return float(self.scores(kept).nll.mean())

    @torch.inference_mode()
    def keep_teacher(self, units: Sequence[int]) -> None:
        """Compare later scores with the predictions of all these units."""
        self.scorer.keep_teacher(self.last(units))

    def _run(self, state: Tensor, kept: Sequence[int], stop: int | None, maps: Mapping[int, Tensor] = NO_MAPS) -> None:
        for unit in kept:
            if unit >= self._at and (stop is None or unit < stop):
                self.units.run(unit, [state], [state])
                if unit in maps:
                    _map(state, maps[unit])


def _map(state: Tensor, matrix: Tensor) -> None:
    """Replace each token [H] of a state [W, T, H] by `matrix` [H, H] times itself, computed in float32."""
    state.copy_(state.float() @ matrix.t())


def _scorer(game: ModelGame, windows: Windows) -> Scorer:
    """A scorer of these windows of the game's own kind."""
    if isinstance(game.masked.scorer, FusedScorer):
        return FusedScorer(windows, game.masked.scorer.head)
    return GeneralScorer(windows)
