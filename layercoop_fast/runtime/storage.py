"""The memory of pages as torch tensors, for the executors that compute in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.pages import PAGE, PagePool


@dataclass(frozen=True)
class PageShape:
    """Shapes of the keys [heads, D] and values [heads, D'] of a token in a block, and their dtype."""

    keys: tuple[int, int]
    values: tuple[int, int]
    dtype: torch.dtype

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return PAGE * (math.prod(self.keys) + math.prod(self.values)) * self.dtype.itemsize


class PageStorage:
    """Pages of keys and values, numbered by `pool`; blocks of one shape share their memory.

    Args:
        shapes: of each block, None where it keeps nothing.
        budget: bytes of all pages, allocated at once; the system provides memory when it is written to.
        device: of the memory.

    Raises `RequestError` where the budget does not hold one token in every block.
    """

    def __init__(self, shapes: list[PageShape | None], budget: int, device: torch.device) -> None:
        kinds = list(dict.fromkeys(shapes))
        sizes = [0 if shape is None else shape.page_bytes for shape in shapes]
        if budget < sum(sizes):
            raise RequestError(
                f"a budget of {budget} bytes for keys and values holds no token: the smallest that works is "
                f"{sum(sizes)} bytes ({PAGE} tokens)"
            )
        self.pool = PagePool(sizes, budget, [kinds.index(shape) for shape in shapes])
        self._of = self.pool.kinds.tolist()
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        for kind, shape in enumerate(kinds):
            if shape is not None:
                pages = self.pool.capacity(kind)
                heads, width = shape.keys
                self._keys[kind] = torch.empty(pages, heads, PAGE, width, dtype=shape.dtype, device=device)
                heads, width = shape.values
                self._values[kind] = torch.empty(pages, heads, PAGE, width, dtype=shape.dtype, device=device)

    def write(self, layer: int, pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys [N, heads, D] and values [N, heads, D'] to slots int64 [N] of pages int64 [N]."""
        kind = self._of[layer]
        self._keys[kind][pages, :, slots] = keys
        self._values[kind][pages, :, slots] = values

    def read(self, layer: int, tables: Tensor, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys [S, heads, T, D] and values [S, heads, T, D'] of the tokens `first` to `end`, by tables int64 [S, P]."""
        kind = self._of[layer]
        start = first // PAGE
        pages = tables[:, start : -(-end // PAGE)]
        part = slice(first - start * PAGE, end - start * PAGE)
        keys, values = self._keys[kind][pages], self._values[kind][pages]  # [S, P, heads, PAGE, D]
        return keys.transpose(1, 2).flatten(2, 3)[:, :, part], values.transpose(1, 2).flatten(2, 3)[:, :, part]

    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page of a block."""
        kind = self._of[layer]
        for memory in (self._keys[kind], self._values[kind]):
            memory[target] = memory[source]
