"""Masks measured as they are repaired: each kept unit before a gap runs with the map that stands in for that gap.

    maps = fit_run_maps(game, texts, longest=10)
    repaired = repaired_game(game, maps)          # a ModelGame: any search plays it
    repaired(masks)

A mask's plan has a player for each pair of a kept unit and the run behind it, so masks share all that they have in
common up to a gap, and a gap costs one more evaluation of the unit before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.game.counts import Counts
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.forward import RunPlayer
from layercoop_fast.masked.model import MaskedModel, Part
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.pool_units import PoolUnits
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.units import GeneralUnits
from layercoop_fast.masks.types import Masks
from layercoop_fast.repair.run_maps import Kept, RunMaps
from layercoop_fast.texts.text import Text

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_PLAYERS = int(_C.MAX_PLAYERS)
"""Of one plan."""


@dataclass(eq=False, kw_only=True)
class RepairedModel(MaskedModel):
    """A `MaskedModel` that runs every mask with the maps of its gaps.

    Attributes:
        maps: of the same model and players.
    """

    maps: RunMaps

    @classmethod
    def by(cls, model: MaskedModel, maps: RunMaps) -> Self:
        """The same as `model`, with maps."""
        shared = {each.name: getattr(model, each.name) for each in fields(model) if each.init}
        if isinstance(model.units, PoolUnits):  # their kernels read weights that they keep for themselves
            halves = model.players.sublayers is not None
            shared["units"] = GeneralUnits(model.windows, model.players.run, halves=halves)
        shared["_fingerprints"] = {**model.fingerprints, "repair": maps.record}
        return cls(**shared, maps=maps)

    def _parts(self, masks: Masks, states: int) -> list[Part]:
        """Masks, bool [M, n], in parts whose players, pairs of a unit and the run behind it, a plan can hold."""
        runs = [self.maps.kept(units) for units in self.players.unit_masks(masks)]
        parts, waiting = [], [np.arange(len(masks))]
        while waiting:
            rows = waiting.pop()
            players = sorted({kept for row in rows for kept in runs[row]})
            if len(players) > MOST_PLAYERS:
                half = len(rows) // 2
                waiting += [rows[half:], rows[:half]]
                continue
            place = {kept: column for column, kept in enumerate(players)}
            expanded = np.zeros((len(rows), max(1, len(players))), dtype=np.bool_)
            for at, row in enumerate(rows):
                expanded[at, [place[kept] for kept in runs[row]]] = True
            parts.append(Part(rows, build_plan(expanded, states), players))
        return parts

    def _run(
        self,
        part: Part,
        max_rows: int,
        take: Callable[[int, Scores], None],
        tell: Callable[[int], None],
        run: RunPlayer | None = None,
    ) -> None:
        """Measure a part, each of its players with its own map."""
        with self.maps.lent() as select:

            def mapped(player: int, sources: Sequence[Tensor], targets: Sequence[Tensor], some: Tensor | None) -> None:
                kept: Kept = part.players[player]
                select(kept)
                self.units.run(kept.unit, sources, targets, some)

            super()._run(part, max_rows, take, tell, run or mapped)


def repaired_game(
    game: ModelGame, maps: RunMaps, text: Text | None = None, *, counts: Counts | None = None
) -> ModelGame:
    """A game on the same model whose worths are those of masks with the maps of their gaps.

    Args:
        game: of the model that the maps were fitted to.
        maps: of all runs (`fit_run_maps`).
        text: what it measures on, windows of the game's length; None: the game's own.
        counts: as of `ModelGame.view`.

    The worth of all players is the full model's. Raises `RequestError` for a game that workers measure.
    """
    if game.masked.n_workers:
        raise RequestError("masks are repaired in this process: leave out workers=, or the search under repairs")
    return game.view(text=text, counts=counts, by=lambda masked: RepairedModel.by(masked, maps))
