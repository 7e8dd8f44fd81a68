"""Token sequences that share beginnings, packed so that each shared token is computed once.

    packs = pack_trees(groups)                                          # the options of an item are a group
    windows = Windows(skeleton, packs.ids, positions=packs.positions)
    check_trees(windows)                                                # refuses a model whose blocks cannot do it

The sequences of a pack form a tree of tokens: examples that all items share, then an item's context, then its options,
and whatever beginning options have in common. It is written down depth first as one window; a token stands at its
depth, which is its position in its own sequence, and attends to its ancestors alone. So in every block the keys and
values of a context exist once, under each mask prefix, for all that follows it.

A token that no scored token follows is not computed: the last of each option. Windows are padded to one length with
tokens that nobody attends to, which cost a block as much as others do; they are filled evenly so that few are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from layercoop_fast.engine.llama_shape import is_mask
from layercoop_fast.engine.skeleton import Context
from layercoop_fast.engine.windows import Windows
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.attention import visible_rows

# Tokens of a window: what all items share is computed once a window, and a general block's attention costs a square of
# its length.
PACK_TOKENS = 2048
# A window of one token has nothing to predict.
_SHORTEST = 2
# How far a block's results in a tree may be from those on a sequence alone: Euclidean norm of the difference over that
# of what the block adds. Both are the model's own arithmetic, in sums of another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# Small beside what a block adds, so that rounding of the stream does not hide a difference in what was added.
_CHECK_SCALE = 0.125


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


def check_trees(windows: Windows) -> None:
    """Make sure that the model's blocks do in a tree what they do on a sequence alone.

    What the blocks are handed for the longest branch alone must be no more than a causal mask. Of the longest branch
    with other rows in between, the embedding must be the same in the tree, and so must be, up to rounding
    (`TOLERANCE`), what every block makes of random input.

    Raises `RequestError` in one line where that is not so: recurrent blocks, sliding windows that are shorter than the
    branch, models that take no positions.
    """
    assert windows.positions is not None
    torn = windows.positions < torch.arange(windows.ids.shape[1], device=windows.ids.device)
    try:
        with torch.inference_mode():
            reason = _narrow(windows, *_branch(windows.positions)) or _difference(
                windows, *_branch(windows.positions.where(torn, 0))
            )
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        reason = f"it fails on positions and a mask for them ({' '.join(str(error).split())[:120]})"
    if reason is not None:
        raise RequestError(
            f"{type(windows.skeleton.model).__name__} cannot share contexts between options: {reason}; "
            "score every sequence whole instead (--no-share-context, share_context=False)"
        )


def _branch(depths: Tensor) -> tuple[int, int]:
    """Window and row of the largest of `depths`, int64 [W, T]."""
    return divmod(int(depths.argmax()), depths.shape[1])


def _narrow(windows: Windows, window: int, row: int) -> str | None:
    """Which block is kept from seeing all of the branch that ends in a row; None where all see it."""
    alone, _ = _alone(windows, window, row)
    for layer in range(windows.skeleton.n_layers):
        for where, value in alone.call(layer).arguments():
            matters = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
            if matters and value.dim() == 4 and not is_mask(value):
                return f"block {layer} sees less than all of {alone.ids.shape[1]} tokens ({where} is no causal mask)"
    return None


def _alone(windows: Windows, window: int, row: int) -> tuple[Context, Tensor]:
    """The branch that ends in a row of a window as a batch of its own, and its rows in the window."""
    assert windows.positions is not None
    rows = visible_rows(windows.positions[window : window + 1, : row + 1])[0, row].nonzero()[:, 0]
    return windows.skeleton.context(windows.ids[window, rows][None]), rows


def _difference(windows: Windows, window: int, row: int) -> str | None:
    """Where the branch that ends in a row differs from the same sequence alone; None where it does not."""
    alone, rows = _alone(windows, window, row)
    packed = windows.part(window, window + 1)
    skeleton = windows.skeleton
    if not torch.equal(alone.embedding, packed.embedding[:, rows]):
        return "it does not place tokens by the positions it is given"
    random = torch.randn(packed.embedding.shape, generator=torch.Generator().manual_seed(0)).mul_(_CHECK_SCALE)
    hidden = random.to(packed.embedding)
    for layer in range(skeleton.n_layers):
        expected = alone.run(layer, hidden[:, rows].clone()).double()
        found = packed.run(layer, hidden.clone())[:, rows].double()
        added = (expected - hidden[:, rows].double()).norm()
        difference = float((found - expected).norm() / added)
        if not difference <= TOLERANCE[skeleton.dtype]:
            return f"block {layer} gives other numbers there than on the sequence alone (by {difference:.0e} of them)"
    return None
