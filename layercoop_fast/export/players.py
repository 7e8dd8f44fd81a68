"""From masks over players to what a plain checkpoint can say: layers that go, and halves of layers written as zeros."""

from __future__ import annotations

import numpy as np
from transformers import PretrainedConfig

from layercoop_fast.errors import RequestError
from layercoop_fast.export.config import ExportableMasks
from layercoop_fast.masked.players import Players
from layercoop_fast.masks.cheapest import in_order_of_cost
from layercoop_fast.masks.types import Floats, Masks


class ExportablePlayers:
    """The masks over players that have a plain checkpoint: the family that a search obeys (`search.base.Allowed`).

    Raises `RequestError` where half a block could go that no checkpoint can leave out (see `Sublayers`).
    """

    def __init__(self, config: PretrainedConfig, players: Players) -> None:
        self._layers = ExportableMasks(config)
        self._players = players
        if players.sublayers is not None:
            for group in players.groups:
                for unit in group:
                    if unit ^ 1 not in group:
                        players.sublayers.silencing_parameters(unit)

    def check_size(self, n_kept: int) -> None:
        """Raise `RequestError` where no mask that keeps `n_kept` players has a plain checkpoint."""
        first = np.arange(self._players.n_players) < n_kept
        if self.check(first) is None or self.best(np.zeros(len(first)), n_kept) is not None:
            return
        raise RequestError(
            f"no {len(first) - n_kept} of {len(first)} players can go from a plain checkpoint: {self.check(first)}"
        )

    def check(self, mask: Masks, /) -> str | None:
        """Return None where the layers that `mask` (`bool[n]`) keeps anything of have a config, else why not."""
        return self._layers.check(self._players.layer_mask(mask))

    def explain(self, mask: Masks) -> str | None:
        """`check`, with the nearest layers that have a config at its end."""
        return self._layers.explain(self._players.layer_mask(mask))

    def best(self, costs: Floats, n_kept: int, /) -> Masks | None:
        """Return the mask that keeps `n_kept` players at the least cost; None where there is none.

        Of groups and halves the cheapest masks are tried in turn, and the search for one ends after
        `in_order.MOST_LOOKED_AT`: which of them go decides whether a layer goes at all, and few configs mind.
        """
        if self._players.kind == "layers":
            return self._layers.best(costs, n_kept)
        one = np.zeros(len(costs), dtype=np.int64)
        masks = in_order_of_cost(costs, [len(costs) - n_kept], one)
        return next((mask for mask in masks if self.check(mask) is None), None)


def zeroed_halves(players: Players, mask: Masks) -> dict[int, list[str]]:
    """For each layer of which one half goes, the parameters to be written as zeros (see `export_checkpoint`)."""
    if players.sublayers is None:
        return {}
    units = players.unit_masks(mask[None])[0]
    return {
        int(unit) // 2: players.sublayers.silencing_parameters(int(unit))
        for unit in np.flatnonzero(~units)
        if units[unit ^ 1]
    }
