"""A sequence: the mask it runs under, the tokens behind it, and where their keys and values lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.pages import PAGE, PagePool


class Sequence:
    """The state of one generation, made by `Executor.sequence`; `release` gives its pages back.

    Attributes:
        mask: uint8 [L], the halves of blocks it runs (`masks.Halves`).
        tokens: what has been computed; `length` is how many.
        tables: int32 [L, P], the page of each stretch of `PAGE` tokens in each block, -1 where there is none.
        layers: int64, the blocks that keep pages: kept ones with attention.
        states: what recurrent blocks carry on, by block number (the general executor's; empty elsewhere).
        rewindable: whether `truncate` is possible.
        drafted: tokens from here on are a draft (`executor.Chunk`); None without one.
    """

    def __init__(self, pool: PagePool, mask: Halves, *, rewindable: bool = True) -> None:
        self.pool = pool
        self.mask = mask
        self.tokens: list[int] = []
        self.layers = np.flatnonzero((mask & 1 > 0) & (pool.page_bytes > 0))
        self.tables: npt.NDArray[np.int32] = np.full((len(mask), 4), -1, dtype=np.int32)
        self.states: dict[int, Any] = {}
        self.rewindable = rewindable
        self.drafted: int | None = None

    @property
    def length(self) -> int:
        """Number of tokens computed."""
        return len(self.tokens)

    @property
    def n_pages(self) -> int:
        """Pages of each kept block."""
        return pages_for(self.length)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on.

        Raises `RequestError` where there are fewer, or a recurrent block has no way back.
        """
        if not 0 <= length <= self.length:
            raise RequestError(f"a sequence of {self.length} tokens cannot be cut to {length}")
        if length == self.length:
            return
        if not self.rewindable and length:
            raise RequestError("this model carries a recurrent state, which cannot be wound back to an earlier token")
        del self.tokens[length:]
        if self.drafted is not None and length <= self.drafted:
            self.drafted = None
        if not length:
            self.states.clear()
        self.trim()

    def trim(self) -> None:
        """Give back the pages beyond those of the tokens computed."""
        self.unlink(len(self.mask), self.n_pages)

    def link(self, other: Sequence, fork: int, first: int, end: int) -> None:
        """Replace the pages `first` to `end` of the blocks below `fork` by the other's."""
        self.widen(end)
        for layer in self.layers[self.layers < fork]:
            mine, theirs = self.tables[layer, first:end], other.tables[layer, first:end]
            changed = mine != theirs
            self.pool.share(layer, theirs[changed & (theirs >= 0)].tolist())
            self.pool.drop(layer, mine[changed & (mine >= 0)].tolist())
            mine[:] = theirs

    def unlink(self, fork: int, first: int) -> None:
        """Let go of the pages from `first` on of the blocks below `fork`, for others to be linked there."""
        for layer in self.layers[self.layers < fork]:
            row = self.tables[layer, first:]
            self.pool.drop(layer, row[row >= 0].tolist())
            row[:] = -1

    def widen(self, pages: int) -> None:
        """Make room in the tables."""
        if pages > self.tables.shape[1]:
            wider = np.full((len(self.mask), max(pages, 2 * self.tables.shape[1])), -1, dtype=np.int32)
            wider[:, : self.tables.shape[1]] = self.tables
            self.tables = wider

    def release(self) -> None:
        """Give everything back; the sequence is empty then, and can be used again."""
        self.tokens.clear()
        self.states.clear()
        self.drafted = None
        self.trim()


def pages_for(tokens: int) -> int:
    """Pages that so many tokens take in one block."""
    return -(-tokens // PAGE)


def common_blocks(a: Halves, b: Halves) -> int:
    """How many blocks, from the first on, two masks [L] agree on."""
    differing = np.flatnonzero(a != b)
    return int(differing[0]) if len(differing) else len(a)
