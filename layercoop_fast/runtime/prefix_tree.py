"""Keys and values that outlive their request: a tree over pages of tokens, with the pages of several masks in a node.

The keys and values of a block depend on the tokens so far and on the kept blocks below it. So a node stands for `PAGE`
tokens after those of its parents, and holds the pages of every mask that computed them; masks that agree on their first
blocks share the pages of these. A request reuses the longest path of nodes that hold all blocks of its mask. When
memory is short, the least recently used pages are freed first, and later pages of a text before earlier ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.pages import PAGE, PagePool
from layercoop_fast.runtime.sequences import TokenSequence, common_blocks


class _Node:
    """`PAGE` tokens after those of its parents."""

    def __init__(self, tokens: tuple[int, ...], parent: _Node | None) -> None:
        self.tokens = tokens
        self.parent = parent
        self.children: dict[tuple[int, ...], _Node] = {}
        self.entries: dict[bytes, _Entry] = {}


class _Entry:
    """The pages of one mask in one node: those of `layers` int64 [K] are `pages` int32 [K]."""

    def __init__(self, node: _Node, mask: Halves, layers: npt.NDArray[np.int64], pages: npt.NDArray[np.int32]) -> None:
        self.node, self.mask, self.layers, self.pages = node, mask, layers, pages


class PrefixTree:
    """Pages of earlier texts, for requests that begin with the same tokens.

    Args:
        pool: of the pages; its `reclaim` is set to `evict`.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._root = _Node((), None)
        # The least recently used one first; of one text the later page before the earlier.
        self._entries: OrderedDict[_Entry, None] = OrderedDict()
        pool.reclaim = self.evict

    def __len__(self) -> int:
        """Number of entries: pairs of a node and a mask."""
        return len(self._entries)

    def match(self, sequence: TokenSequence, tokens: Sequence[int]) -> int:
        """Give an empty sequence the pages held for the beginning of `tokens`; return the number of these tokens.

        They are whole pages, and never all tokens: the last one has to be computed for its logits.
        """
        if not len(sequence.layers):
            return 0
        node, found = self._root, []
        deepest = int(sequence.layers[-1])
        for first in range(0, len(tokens) - PAGE, PAGE):
            child = node.children.get(tuple(tokens[first : first + PAGE]))
            # An entry fits every mask that agrees with its own up to the last block that keeps pages.
            entry = None if child is None else _closest(child, sequence.mask)
            if child is None or entry is None or common_blocks(entry.mask, sequence.mask) <= deepest:
                break
            found.append(entry)
            node = child
        sequence.widen(len(found))
        for at, entry in enumerate(found):
            pages = entry.pages[np.searchsorted(entry.layers, sequence.layers)]
            for layer, page in zip(sequence.layers.tolist(), pages.tolist(), strict=True):
                self.pool.share(layer, [page])
                sequence.tables[layer, at] = page
        sequence.tokens.extend(map(int, tokens[: PAGE * len(found)]))
        self._touch(found)
        return PAGE * len(found)

    def insert(self, sequence: TokenSequence) -> None:
        """Keep the whole pages of a sequence; where the tree has them already, the sequence gets the tree's pages."""
        if not len(sequence.layers):
            return
        node, found = self._root, []
        key = sequence.mask.tobytes()
        for at in range(sequence.length // PAGE):
            tokens = tuple(sequence.tokens[PAGE * at : PAGE * (at + 1)])
            node = node.children.setdefault(tokens, _Node(tokens, node))
            closest = node.entries.get(key) or _closest(node, sequence.mask)
            if closest is not None:
                self._unite(sequence, at, closest)
            if key not in node.entries:
                pages = sequence.tables[sequence.layers, at].copy()
                for layer, page in zip(sequence.layers.tolist(), pages.tolist(), strict=True):
                    self.pool.share(layer, [page])
                node.entries[key] = _Entry(node, sequence.mask, sequence.layers, pages)
            found.append(node.entries[key])
        self._touch(found)

    def evict(self, n_bytes: int) -> bool:
        """Drop the least recently used entries until `n_bytes` are freed; return whether any bytes were."""
        before = self.pool.used_bytes
        while self._entries and self.pool.used_bytes > before - n_bytes:
            entry, _ = self._entries.popitem(last=False)
            for layer, page in zip(entry.layers.tolist(), entry.pages.tolist(), strict=True):
                self.pool.drop(layer, [page])
            node: _Node | None = entry.node
            del entry.node.entries[entry.mask.tobytes()]
            while node is not None and node.parent is not None and not node.entries and not node.children:
                del node.parent.children[node.tokens]
                node = node.parent
        return self.pool.used_bytes < before

    def clear(self) -> None:
        """Drop all entries."""
        while self._entries:
            self.evict(self.pool.budget + 1)

    def _unite(self, sequence: TokenSequence, at: int, entry: _Entry) -> None:
        """Replace the sequence's pages by the entry's in the first blocks, on which both masks agree."""
        common = common_blocks(entry.mask, sequence.mask)
        for layer in sequence.layers[sequence.layers < common].tolist():
            ours = int(sequence.tables[layer, at])
            theirs = int(entry.pages[np.searchsorted(entry.layers, layer)])
            if ours != theirs:
                self.pool.share(layer, [theirs])
                self.pool.drop(layer, [ours])
                sequence.tables[layer, at] = theirs

    def _touch(self, entries: list[_Entry]) -> None:
        for entry in reversed(entries):
            self._entries[entry] = None
            self._entries.move_to_end(entry)


def _closest(node: _Node, mask: Halves) -> _Entry | None:
    """The entry of a node whose mask agrees with this one on the most first blocks."""
    return max(node.entries.values(), key=lambda entry: common_blocks(entry.mask, mask), default=None)
