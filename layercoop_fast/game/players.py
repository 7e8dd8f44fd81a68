"""Who plays: what one bit of a mask removes.

A mask over players becomes a mask over layers here, and nowhere else, so that finer players can be added beside
`Layers` without touching games, estimators or searches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.errors import RequestError


@dataclass(frozen=True)
class Layers:
    """One player a layer."""

    n_layers: int
    kind = "layers"

    @property
    def n_players(self) -> int:
        """Number of players n."""
        return self.n_layers

    def layer_masks(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Masks over players, bool [M, n] → masks over layers, bool [M, L]."""
        return masks

    def label(self, player: int) -> int:
        """The name of a player in reports and in `layercoop.json`: its layer's number in the original model."""
        return player


def make_players(kind: str, n_layers: int) -> Layers:
    """The players named `kind` for a model of `n_layers` layers; `RequestError` for an unknown kind."""
    if kind != Layers.kind:
        raise RequestError(f"unknown players {kind!r}: the players there are is 'layers'")
    return Layers(n_layers)
