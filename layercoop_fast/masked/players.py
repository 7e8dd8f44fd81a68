"""Players: what one bit of a mask removes.

The engine runs *units*, each of which turns the stream into a new stream: whole blocks, or the attention and MLP
halves of blocks. A player is one unit or a group of units that go together. Masks over players become masks over units
here, and nowhere else; games, estimators and searches know players only.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from layercoop_fast.engine.quantised import bytes_of, parameters_of
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.text import read_json
from layercoop_fast.masks.halves import PARTS
from layercoop_fast.masks.types import Masks

Label = int | str
"""A unit's name in reports and in `layercoop.json`: 12 for a layer, "12.attn" or "12.mlp" for a sublayer."""

_NUMBER = re.compile(r"[0-9]{1,6}")
_FORM = "write groups like [[0, 1], [2]]"


class Players:
    """The players of a model.

    Args:
        skeleton: the model.
        kind: "layers", "sublayers" or "groups".
        groups: the units of each player; a unit belongs to at most one, and those of none always run.
        sublayers: where units are the halves of blocks.
    """

    def __init__(
        self, skeleton: Skeleton, kind: str, groups: Sequence[Sequence[int]], sublayers: Sublayers | None
    ) -> None:
        self.kind = kind
        self.skeleton = skeleton
        self.sublayers = sublayers
        self.groups = tuple(tuple(group) for group in groups)
        self.n_players = len(self.groups)
        self.n_units = skeleton.n_layers if sublayers is None else sublayers.n_units

    @property
    def description(self) -> str:
        """Text that tells apart players of other kinds or groups, for fingerprints."""
        if self.kind != "groups":
            return self.kind
        return json.dumps([[self.label(unit) for unit in group] for group in self.groups])

    def unit_masks(self, masks: Masks) -> Masks:
        """Masks over players, bool [M, n] → masks over units, bool [M, U]."""
        units = np.ones((len(masks), self.n_units), dtype=np.bool_)
        for player, group in enumerate(self.groups):
            units[:, list(group)] = masks[:, player, None]
        return units

    def label(self, unit: int) -> Label:
        """The name of a unit, by the numbers of the original model."""
        return unit if self.sublayers is None else f"{unit // 2}.{PARTS[unit % 2]}"

    def layer(self, unit: int) -> int:
        """The layer that a unit is, or is half of."""
        return unit if self.sublayers is None else unit // 2

    def layer_mask(self, mask: Masks) -> Masks:
        """The layers of which anything is kept under a mask over players: bool [n] → bool [L]."""
        units = self.unit_masks(mask[None])[0]
        layers: Masks = units if self.sublayers is None else units.reshape(-1, 2).any(axis=1)
        return layers

    def n_parameters(self, unit: int) -> int:
        """Parameters of a unit."""
        if self.sublayers is not None:
            return self.sublayers.n_parameters(unit)
        return parameters_of(self.skeleton.blocks[unit].parameters())

    def n_bytes(self, layer: int) -> int:
        """Bytes of a whole layer's weights in memory."""
        return bytes_of(self.skeleton.blocks[layer].parameters())

    def run(self, context: Context, unit: int, hidden: Tensor) -> Tensor:
        """One unit on the stream: [B, T, H] → [B, T, H]."""
        if self.sublayers is None:
            return context.run(unit, hidden)
        return self.sublayers.run(context, unit, hidden)


def make_players(spec: str | Sequence[Sequence[Label]] | Players, skeleton: Skeleton) -> Players:
    """The players of a SPEC: "layers", "sublayers", groups of labels, or the path of a .json file that lists groups.

    Players made before pass through.

    `[[0, 1], [2], ["3.attn", "4.attn"]]` makes three players; a label that is a whole layer stands for both its halves
    where others are sublayers.

    Raises `RequestError` for anything else, and for sublayers of a model whose blocks have none.
    """
    if isinstance(spec, Players):
        return spec
    if spec == "layers":
        return Players(skeleton, spec, [[layer] for layer in range(skeleton.n_layers)], None)
    if spec == "sublayers":
        sublayers = Sublayers(skeleton)
        return Players(skeleton, spec, [[unit] for unit in range(sublayers.n_units)], sublayers)
    if isinstance(spec, str):
        if not spec.endswith(".json"):
            raise RequestError(
                f"unknown players {spec!r}: choose layers, sublayers, or a .json file of groups like [[0, 1], [2]]"
            )
        spec = _read_groups(spec)
    return _grouped(spec, skeleton)


def _grouped(spec: Sequence[Sequence[Label]], skeleton: Skeleton) -> Players:
    if len(spec) > MAX_PLAYERS:
        raise RequestError(f"{len(spec)} groups of players are too many: at most {MAX_PLAYERS:,}")
    if not spec or not all(isinstance(group, (list, tuple)) and group for group in spec):
        raise RequestError("groups of players are a list of non-empty lists of labels, like [[0, 1], [2]]")
    finer = any(isinstance(label, str) and "." in label for group in spec for label in group)
    sublayers = Sublayers(skeleton) if finer else None
    groups = [[unit for label in group for unit in _units(label, skeleton.n_layers, finer)] for group in spec]
    units = [unit for group in groups for unit in group]
    if len(set(units)) < len(units):
        raise RequestError("a layer or sublayer is in two groups of players: each belongs to one at most")
    return Players(skeleton, "groups", groups, sublayers)


def _units(label: Label, n_layers: int, finer: bool) -> list[int]:
    """The units that a label names."""
    number, _, part = str(label).partition(".")
    if _NUMBER.fullmatch(number) and int(number) < n_layers and part in ("", *PARTS):
        layer = int(number)
        if part:
            return [2 * layer + PARTS.index(part)]
        return [2 * layer, 2 * layer + 1] if finer else [layer]
    last = n_layers - 1
    raise RequestError(
        f'{reprlib.repr(label)} is neither a layer (0 to {last}) nor a sublayer ("0.attn" to "{last}.mlp")'
    )


def _read_groups(path: str) -> Sequence[Sequence[Label]]:
    groups = read_json(Path(path), hint=_FORM)
    if not isinstance(groups, list):
        raise RequestError(f"{path} is not a list of groups: {_FORM}")
    return groups
