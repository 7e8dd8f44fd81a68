"""The masks that a server answers under, by name.

Every mask is a model to clients: `smollm2` runs all blocks, `smollm2:fast` those that the mask `fast` keeps. Names that
the server started with stay; those that clients add are limited in number, and the one that was not used for longest
makes room for the next. A request holds its mask, so removing a name ends nothing that is being answered.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.masks.text import blocks_mask, mask_of, text_of
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.failures import RefusedError, bad_request

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
UNNAMED = "unnamed"
"""What metrics and answers call a mask that a request brought along without a name."""


@dataclass(frozen=True, eq=False)
class NamedMask:
    """A mask as clients see it.

    Attributes:
        model: its name as a model: `BASE`, `BASE:NAME`, or `BASE:unnamed`.
        halves: uint8 [L], what it keeps of each block (`masks/halves.py`).
        created: seconds since 1970.
    """

    model: str
    halves: Halves
    created: int = field(default_factory=lambda: int(time.time()))


class NamedMasks:
    """See the module.

    Args:
        model: whose masks they are.
        base: its name to clients.
        fixed: masks by name that are there as long as the server; texts as `masks.text.mask_of` reads them.
        most: how many names clients may add.

    Raises `RequestError` for names that cannot be a model's, and for masks that cannot run.
    """

    def __init__(self, model: LayerSkipModel, base: str, fixed: Mapping[str, str], most: int) -> None:
        if not _NAME.fullmatch(base):
            raise RequestError(f"the model's name {base!r} must be letters, digits, '.', '_' and '-', 64 at most")
        self._model = model
        self.base = base
        self._most = most
        self._fixed = {base: NamedMask(base, model.mask())}
        for name, text in fixed.items():
            _check_name(name)
            halves = model.mask(mask_of(text, model.n_layers, f"mask {name}"))
            self._fixed[f"{base}:{name}"] = NamedMask(f"{base}:{name}", halves)
        self._added: OrderedDict[str, NamedMask] = OrderedDict()

    @property
    def unnamed_model(self) -> str:
        """What masks without a name are called as a model."""
        return f"{self.base}:{UNNAMED}"

    def has(self, mask: NamedMask) -> bool:
        """Whether a mask is there under its name now."""
        return mask in (self._fixed.get(mask.model), self._added.get(mask.model))

    def all(self) -> list[NamedMask]:
        """Every mask that has a name, the base first."""
        return [*self._fixed.values(), *self._added.values()]

    def find(self, model: str) -> NamedMask:
        """The mask that a model's name stands for; `RefusedError` 404 where there is none."""
        if model in self._added:
            self._added.move_to_end(model)
            return self._added[model]
        if model not in self._fixed:
            known = ", ".join(each.model for each in self.all()[:8])
            raise RefusedError(
                404, f"there is no model {model[:80]!r} here: there are {known}", "model_not_found", param="model"
            )
        return self._fixed[model]

    def unnamed(self, model: str, layer_mask: object) -> NamedMask:
        """A mask that a request brings along: what goes as text ("13-18", "12.attn"), or a list of bool, True = kept.

        The base of `model` must be there. Raises `RefusedError` 400 for a mask that is neither, or of another width.
        """
        self.find(model)
        return NamedMask(self.unnamed_model, self._read(layer_mask))

    def add(self, name: str, layer_mask: object) -> tuple[NamedMask, list[NamedMask]]:
        """Give a mask a name, and return it with those that had to leave.

        Raises `RefusedError`: 400 for a bad name or mask, 409 for a name that is there with another mask.
        """
        try:
            _check_name(name)
        except RequestError as error:
            raise bad_request(str(error), "name") from error
        model, halves = f"{self.base}:{name}", self._read(layer_mask)
        there = self._fixed.get(model) or self._added.get(model)
        if there is not None:
            if not np.array_equal(there.halves, halves):
                raise RefusedError(
                    409, f"{model} is there with another mask: remove it first", "mask_exists", param="name"
                )
            return there, []
        mask = self._added[model] = NamedMask(model, halves)
        left = [self._added.popitem(last=False)[1] for _ in range(len(self._added) - self._most)]
        return mask, left

    def remove(self, name: str) -> NamedMask:
        """Take a name away; `RefusedError` 404 where it is not there, 403 where the server started with it."""
        model = f"{self.base}:{name}"
        if model in self._fixed:
            raise RefusedError(403, f"{model} is one of the server's own masks and stays", "mask_is_fixed")
        if model not in self._added:
            raise RefusedError(404, f"there is no mask {name[:80]!r} here", "mask_not_found")
        return self._added.pop(model)

    def text(self, mask: NamedMask) -> str:
        """What a mask removes, as `masks.text.mask_of` reads it."""
        return text_of(mask.halves)

    def _read(self, layer_mask: object) -> Halves:
        n_layers = self._model.n_layers
        try:
            if isinstance(layer_mask, str):
                return self._model.mask(blocks_mask(layer_mask, n_layers, "layer_mask"))  # clients name no files
            if isinstance(layer_mask, Sequence) and layer_mask and all(isinstance(each, bool) for each in layer_mask):
                return self._model.mask(np.array(layer_mask, dtype=np.bool_))
        except RequestError as error:
            raise bad_request(str(error), "layer_mask", "bad_mask") from error
        raise bad_request(
            f"layer_mask is what to leave out, like '13-18' or '12.attn', or a list of {n_layers} or {2 * n_layers} "
            "true and false",
            "layer_mask",
            "bad_mask",
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == UNNAMED:
        raise RequestError(f"a mask's name is letters, digits, '.', '_' and '-', 64 at most, not {name[:80]!r}")
