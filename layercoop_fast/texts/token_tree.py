"""Token sequences that share beginnings, packed so that each shared token is computed once.

    packs = pack_trees(groups)                                          # the options of an item are a group
    windows = Windows(skeleton, packs.ids, positions=packs.positions)
    check_trees(windows)                                                # `masked/trees.py`: can the blocks do it?

The sequences of a pack form a tree of tokens: examples that all items share, then an item's context, then its options,
and whatever beginning options have in common. It is written down depth first as one window; the position of a
token is its depth, as in its own sequence, and it attends to its ancestors alone. So in every block the keys and
values of a context exist once, under each mask prefix, for all that follows it.

A token that no scored token follows is not computed: the last of each option. Windows are padded to one length with
tokens that nobody attends to, which cost a block as much as others do; they are filled evenly so that few are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# Tokens of a window: what all items share is computed once a window, and a general block's attention costs a square of
# its length.
PACK_TOKENS = 2048
# A window of one token has nothing to predict.
_SHORTEST = 2


@dataclass(frozen=True)
class Scored:
    """A sequence of tokens, of which those from `start` on are scored, 1 ≤ start < length."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, eq=False)
class Packs:
    """Sequences as equal windows.

    Attributes:
        ids: int64 [W, T].
        positions: int64 [W, T] where windows are trees, None where each is one sequence.
        rows: int64 [E], of all W·T rows those after which a token is scored; a row may be there several times.
        targets: int64 [E], that token.
        of_token: int64 [N], which of the E each scored token is, sequence after sequence; sequences may share some.
        filled: bool [W, T], True for tokens of sequences, False for those that windows are padded with.
    """

    ids: Tensor
    positions: Tensor | None
    rows: Tensor
    targets: Tensor
    of_token: Tensor
    filled: Tensor

    def to(self, device: str | torch.device) -> Packs:
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})


def pack_whole(groups: Sequence[Sequence[Scored]]) -> Packs:
    """Every sequence by itself, nothing shared: a window each, padded behind its end."""
    sequences = [sequence for group in groups for sequence in group]
    width = max(_SHORTEST, *(len(sequence.tokens) - 1 for sequence in sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    rows: list[int] = []
    targets: list[int] = []
    for window, sequence in enumerate(sequences):
        ids[window, : len(sequence.tokens) - 1] = torch.tensor(sequence.tokens[:-1])
        rows.extend(window * width + at - 1 for at in range(sequence.start, len(sequence.tokens)))
        targets.extend(sequence.tokens[sequence.start :])
    filled = _filled([len(sequence.tokens) - 1 for sequence in sequences], width)
    return Packs(ids, None, torch.tensor(rows), torch.tensor(targets), torch.arange(len(rows)), filled)


def pack_trees(groups: Sequence[Sequence[Scored]], tokens: int = PACK_TOKENS) -> Packs:
    """Sequences as trees in as few windows of up to `tokens` tokens as groups fit into; a group stays together.

    A group that is larger by itself makes windows that long.
    """
    fewest = len(_split(groups, tokens))
    low, high = 1, tokens  # the least limit that needs no more windows: they are then filled evenly
    while low < high:
        middle = (low + high) // 2
        if len(_split(groups, middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    trees = _split(groups, low)
    width = max(_SHORTEST, *(tree.size for tree in trees))
    ids = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros(len(trees), width, dtype=torch.int64)
    edges: dict[tuple[int, int], int] = {}
    of_token = []
    for window, tree in enumerate(trees):
        order = tree.depth_first()
        ids[window, : tree.size] = torch.tensor([tree.tokens[node] for node in order])
        positions[window, : tree.size] = torch.tensor([tree.depths[node] for node in order])
        row_of = {node: window * width + row for row, node in enumerate(order)}
        for sequence, path in tree.paths:
            for at in range(sequence.start, len(sequence.tokens)):
                edge = (row_of[path[at - 1]], sequence.tokens[at])
                of_token.append(edges.setdefault(edge, len(edges)))
    rows, targets = zip(*edges, strict=True)
    filled = _filled([tree.size for tree in trees], width)
    return Packs(ids, positions, torch.tensor(rows), torch.tensor(targets), torch.tensor(of_token), filled)


def _filled(sizes: Sequence[int], width: int) -> Tensor:
    """Windows of `width` tokens of which the first `sizes` are tokens of sequences, bool [W, width]."""
    return torch.arange(width) < torch.tensor(sizes)[:, None]


def _split(groups: Sequence[Sequence[Scored]], limit: int) -> list[_Tree]:
    """Trees of at most `limit` tokens, or of one group, filled in order."""
    trees = [_Tree()]
    for group in groups:
        if not trees[-1].add(group, limit):
            trees.append(_Tree())
            trees[-1].add(group, limit)
    return trees


@dataclass
class _Tree:
    """A tree of tokens: of each node its token, its depth and its children by token. A forest hangs from node −1."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[int, dict[int, int]] = field(default_factory=lambda: {-1: {}})
    paths: list[tuple[Scored, list[int]]] = field(default_factory=list)
    """The sequences, each with the nodes of all its tokens but the last."""

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.tokens)

    def add(self, group: Sequence[Scored], limit: int) -> bool:
        """Add a group, unless the tree would then have more than `limit` nodes and holds another one already."""
        before = self.size
        grown: list[tuple[int, int]] = []
        paths = [(sequence, self._grow(sequence.tokens[:-1], grown)) for sequence in group]
        if self.size > limit and self.paths:
            for parent, token in reversed(grown):
                del self.children[self.children[parent].pop(token)]
            del self.tokens[before:], self.depths[before:]
            return False
        self.paths += paths
        return True

    def _grow(self, tokens: Sequence[int], grown: list[tuple[int, int]]) -> list[int]:
        """The nodes of a sequence; those that were not there are added, and named in `grown` as parent and token."""
        path, node = [], -1
        for depth, token in enumerate(tokens):
            parent, node = node, self.children[node].get(token, -1)
            if node < 0:
                node = self.size
                self.children[parent][token] = node
                self.children[node] = {}
                self.tokens.append(token)
                self.depths.append(depth)
                grown.append((parent, token))
            path.append(node)
        return path

    def depth_first(self) -> list[int]:
        """All nodes, each before its children and these before its next sibling."""
        order, waiting = [], [-1]
        while waiting:
            node = waiting.pop()
            order.append(node)
            waiting.extend(reversed(self.children[node].values()))
        return order[1:]
