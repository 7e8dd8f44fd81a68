"""The state of one generation: its mask, its tokens, and the pages of their keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.pages import PAGE, PagePool


class TokenSequence:
    """The state of one generation, made by `Executor.sequence`; `release` frees its pages.

    Attributes:
        pool: of its pages.
        mask: uint8 [L], the halves of blocks it runs (`masks.Halves`).
        tokens: that are computed.
        tables: int32 [L, P], the page of every `PAGE` tokens in each block, -1 where there is none.
        layers: int64 [·], the blocks that keep pages: kept ones with attention.
        n_blocks: number of blocks it runs, or a half of.
        states: of recurrent blocks, by block number (general executor only).
        rewindable: whether `truncate` is possible.
        drafted: number of the first token that is a draft (`executor.Chunk`); None without drafts.
    """

    def __init__(self, pool: PagePool, mask: Halves, *, rewindable: bool = True) -> None:
        self.pool = pool
        self.mask = mask
        self.tokens: list[int] = []
        self.layers = np.flatnonzero((mask & 1 > 0) & (pool.page_bytes > 0))
        self.n_blocks = int(np.count_nonzero(mask))
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
        """Number of pages of each kept block."""
        return pages_for(self.length)

    def truncate(self, length: int) -> None:
        """Remove the tokens from number `length` on.

        Raises `RequestError` where there are fewer, or where the model has a recurrent state.
        """
        if not 0 <= length <= self.length:
            raise RequestError(f"a sequence of {self.length} tokens cannot be truncated to {length}")
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
        """Free the pages beyond those of the computed tokens."""
        self.unlink(len(self.mask), self.n_pages)

    def link(self, other: TokenSequence, fork: int, first: int, end: int) -> None:
        """Replace the pages `first` to `end` of the blocks below `fork` by those of `other`."""
        self.widen(end)
        for layer in self.layers[self.layers < fork]:
            mine, theirs = self.tables[layer, first:end], other.tables[layer, first:end]
            changed = mine != theirs
            self.pool.share(layer, theirs[changed & (theirs >= 0)].tolist())
            self.pool.drop(layer, mine[changed & (mine >= 0)].tolist())
            mine[:] = theirs

    def unlink(self, fork: int, first: int) -> None:
        """Free the pages from `first` on of the blocks below `fork`."""
        for layer in self.layers[self.layers < fork]:
            row = self.tables[layer, first:]
            self.pool.drop(layer, row[row >= 0].tolist())
            row[:] = -1

    def widen(self, pages: int) -> None:
        """Make the tables at least `pages` wide."""
        if pages > self.tables.shape[1]:
            wider = np.full((len(self.mask), max(pages, 2 * self.tables.shape[1])), -1, dtype=np.int32)
            wider[:, : self.tables.shape[1]] = self.tables
            self.tables = wider

    def release(self) -> None:
        """Free all pages and states; the sequence is then empty and can be used again."""
        self.tokens.clear()
        self.states.clear()
        self.drafted = None
        self.trim()


def pages_for(tokens: int) -> int:
    """Number of pages of `tokens` tokens in one block."""
    return -(-tokens // PAGE)


def common_blocks(a: Halves, b: Halves) -> int:
    """Number of first blocks on which two masks, uint8 [L], agree."""
    differing = np.flatnonzero(a != b)
    return int(differing[0]) if len(differing) else len(a)
