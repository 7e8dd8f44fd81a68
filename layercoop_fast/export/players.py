"""From masks over players to plain checkpoints: layers that are removed, and halves of layers written as zeros."""

from __future__ import annotations

import numpy as np
from transformers import PretrainedConfig

from layercoop_fast.errors import RequestError
from layercoop_fast.export.config import ExportableMasks
from layercoop_fast.masked.players import Players
from layercoop_fast.masks.cheapest import in_order_of_cost
from layercoop_fast.masks.types import Floats, Masks


class ExportablePlayers:
    """The masks over players with a plain checkpoint, as a family for searches (`search.base.Allowed`).

    Raises `RequestError` where half a block is a player that no checkpoint can leave out (see `Sublayers`).
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
            f"no {len(first) - n_kept} of {len(first)} players can be removed in a plain checkpoint: "
            f"{self.check(first)}"
        )

    def check(self, mask: Masks, /) -> str | None:
        """Return None where the layers that `mask` (`bool[n]`) keeps a part of have a config, else why not."""
        return self._layers.check(self._players.layer_mask(mask))

    def explain(self, mask: Masks) -> str | None:
        """`check` of `mask` (`bool[n]`), with the nearest layers that have a config at the end of the line."""
        return self._layers.explain(self._players.layer_mask(mask))

    def best(self, costs: Floats, n_kept: int, /) -> Masks | None:
        """Return the mask (`bool[n]`) that keeps `n_kept` players at the least cost; None where there is none.

        `costs` is float64 [n]. For groups and halves, masks are tried in order of cost, at most
        `masks.cheapest.MOST_LOOKED_AT` of them: most of them have a config.
        """
        if self._players.kind == "layers":
            return self._layers.best(costs, n_kept)
        one = np.zeros(len(costs), dtype=np.int64)
        masks = in_order_of_cost(costs, [len(costs) - n_kept], one)
        return next((mask for mask in masks if self.check(mask) is None), None)


def zeroed_halves(players: Players, mask: Masks) -> dict[int, list[str]]:
    """For each layer of which `mask` (`bool[n]`) removes one half, the parameters to write as zeros.

    See `export_checkpoint`.
    """
    if players.sublayers is None:
        return {}
    units = players.unit_masks(mask[None])[0]
    return {
        int(unit) // 2: players.sublayers.silencing_parameters(int(unit))
        for unit in np.flatnonzero(~units)
        if units[unit ^ 1]
    }
