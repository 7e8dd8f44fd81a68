"""The pool of pages for keys and values: page numbers, their reference counts, and a budget of bytes.

A page holds the keys and values of `PAGE` tokens in *one* block. So a removed block takes no memory, and two masks that
agree on their first blocks share the pages of exactly these. The pool hands out page numbers and counts references; the
memory of the pages belongs to the executor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RunError

PAGE = 16
"""Number of tokens of a page."""


class PoolFullError(RunError):
    """The pages that a call needs do not fit into the budget; nothing has changed."""


class PagePool:
    """Page numbers with reference counts, under one budget of bytes.

    Args:
        page_bytes: bytes of a page of each block; 0 for a block without pages (a recurrent one).
        budget: most bytes of all pages.
        kinds: for each block the kind of its pages. Pages of one kind are interchangeable; numbers are per kind, from 0
            on, lowest first. By default blocks with pages of equal size are of one kind.

    Attributes:
        kinds, page_bytes: int64 [L].
        budget: as given.
        used_bytes: of pages in use.
        reclaim: called when there are too few free pages: `reclaim(bytes)` drops references to pages of about that many
            bytes and returns whether it dropped any. A prefix tree sets it.
    """

    def __init__(self, page_bytes: Sequence[int], budget: int, kinds: Sequence[int] | None = None) -> None:
        if kinds is None:
            sizes = sorted(set(page_bytes))
            kinds = [sizes.index(size) for size in page_bytes]
        self.kinds = np.array(kinds, dtype=np.int64)
        self.page_bytes = np.array(page_bytes, dtype=np.int64)
        self.budget = budget
        self.reclaim: Callable[[int], bool] | None = None
        self._bytes = {int(kind): int(size) for kind, size in zip(kinds, page_bytes, strict=True)}
        self._references = {kind: np.zeros(self.capacity(kind), dtype=np.int32) for kind in self._bytes}
        self._free: dict[int, list[int]] = {kind: [] for kind in self._bytes}
        self._unused = dict.fromkeys(self._bytes, 0)  # the lowest number never handed out
        self.used_bytes = 0

    def capacity(self, kind: int) -> int:
        """The most pages of a kind that fit into the budget."""
        return self.budget // self._bytes[kind] if self._bytes[kind] else 0

    @property
    def used(self) -> int:
        """Number of pages in use."""
        return sum(self._unused[kind] - len(self._free[kind]) for kind in self._bytes)

    def reserve(self, n_bytes: int) -> None:
        """Make sure that pages of `n_bytes` can be taken; raises `PoolFullError` where they cannot."""
        while self.used_bytes + n_bytes > self.budget:
            missing = self.used_bytes + n_bytes - self.budget
            if self.reclaim is None or not self.reclaim(missing):
                raise PoolFullError(
                    f"keys and values of {n_bytes} more bytes do not fit into the budget of {self.budget} bytes "
                    f"({self.used_bytes} in use)"
                )

    def take(self, layer: int) -> int:
        """Take a page of a block, with one reference; the bytes must be reserved before."""
        kind = int(self.kinds[layer])
        if self.used_bytes + self._bytes[kind] > self.budget or not self._bytes[kind]:
            raise RunError(f"a page of block {layer} was taken without being reserved")
        if self._free[kind]:
            page = self._free[kind].pop()
        else:
            page = self._unused[kind]
            self._unused[kind] += 1
        self._references[kind][page] = 1
        self.used_bytes += self._bytes[kind]
        return page

    def share(self, layer: int, pages: Iterable[int]) -> None:
        """Add a reference to each of these pages of a block."""
        references = self._references[int(self.kinds[layer])]
        for page in pages:
            if references[page] < 1:
                raise RunError(f"page {page} of block {layer} was shared after it had been freed")
            references[page] += 1

    def drop(self, layer: int, pages: Iterable[int]) -> None:
        """Drop a reference to each of these pages of a block; a page without references is free."""
        kind = int(self.kinds[layer])
        references = self._references[kind]
        for page in pages:
            if references[page] < 1:
                raise RunError(f"page {page} of block {layer} was freed twice")
            references[page] -= 1
            if references[page] == 0:
                self._free[kind].append(int(page))
                self.used_bytes -= self._bytes[kind]

    def references(self, layers: npt.NDArray[np.int64], pages: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Reference counts int32 [n] of one page of each of `layers` int64 [n]."""
        if len(self._references) == 1:
            (only,) = self._references.values()
            return only[pages]
        found = np.empty(len(layers), dtype=np.int32)
        kinds = self.kinds[layers]
        for kind, references in self._references.items():
            of_kind = kinds == kind
            found[of_kind] = references[pages[of_kind]]
        return found
