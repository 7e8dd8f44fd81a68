"""What a call of the GPU executor sends to the device: one int32 vector, whose parts are what its blocks read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layercoop_fast.kernels.reference.attention import Teams
from layercoop_fast.runtime.executor import Rows
from layercoop_fast.runtime.gpu_teams import TEAM
from layercoop_fast.runtime.pages import PAGE

# Parts of a vector that goes to the device begin at multiples of so many int32: 16 bytes, as Triton's kernels expect.
ALIGNED = 4


@dataclass(frozen=True)
class StepShape:
    """What the vector of a step has room for: S tokens, L blocks, M pages of a context, T teams in a block."""

    tokens: int
    layers: int
    pages: int
    teams: int


@dataclass(frozen=True)
class Step:
    """What a step of S tokens reads, on the device: views of one int32 vector."""

    tokens: Tensor
    positions: Tensor
    lengths: Tensor
    slots: Tensor
    pages: Tensor
    """[L, S], where each block's keys and values go."""
    keeps: Tensor
    """[2, L, S], 1 where a token keeps the attention or the MLP."""
    tables: Tensor
    """[S, L, M]."""
    shared: Tensor
    """[L, S], tokens that each one's context shares with its team; of no teams [L, 0]."""
    members: Tensor
    """[L, T, TEAM], the teams."""

    @staticmethod
    def sizes(shape: StepShape) -> list[int]:
        """Numbers of each part; those of a block begin at multiples of 16 bytes too."""
        tokens, layers = shape.tokens, shape.layers
        blocks = layers * room_for([tokens])
        parts = [tokens] * 4 + [blocks, 2 * blocks, tokens * layers * shape.pages]
        return [*parts, blocks if shape.teams else 0, layers * shape.teams * TEAM]

    @classmethod
    def of(cls, vector: Tensor, shape: StepShape) -> Step:
        """The parts of a vector int32 [N], with N = `room_for(sizes)`."""
        count, layers = shape.tokens, shape.layers
        tokens, positions, lengths, slots, into, keeps, tables, shared, members = parts_of(vector, cls.sizes(shape))
        return cls(
            tokens, positions, lengths, slots, into.view(layers, -1)[:, :count],
            keeps.view(2, layers, -1)[:, :, :count], tables.view(count, layers, shape.pages),
            shared.view(layers, -1)[:, :count], members.view(layers, shape.teams, TEAM),
        )  # fmt: skip

    def teams(self, layer: int) -> Teams | None:
        """The teams of a block; None where there are none."""
        return Teams(self.members[layer], self.shared[layer]) if self.members.shape[1] else None


@dataclass(frozen=True)
class BlockRows:
    """Which rows a block runs for in a call of any rows, and what their attention reads: int32, on the device.

    Attributes:
        born: [2, B], rows that begin at this block, and those whose states they begin with.
        attending: [N], rows of the attention.
        pages, slots: [N], where their keys and values go.
        starts: [S + 1], where the rows of each of the S sequences with such rows begin.
        tables: [S, P], pages of their contexts.
        lengths: [S], tokens of these.
        feeding: [M], rows of the MLP.
        longest: rows of a sequence at most.
    """

    born: Tensor
    attending: Tensor
    pages: Tensor
    slots: Tensor
    starts: Tensor
    tables: Tensor
    lengths: Tensor
    feeding: Tensor
    longest: int


def send_rows(rows: Rows, n_layers: int, send: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, list[BlockRows]]:
    """Tokens and positions, int32 [R] each, and the rows of all blocks on the device, by one call of `send`."""
    blocks = [_block_rows(rows, layer) for layer in range(n_layers)]
    arrays = [rows.tokens, rows.positions, *(array for some, _ in blocks for array in some)]
    sizes = [array.size for array in arrays]
    host = np.zeros(room_for(sizes), dtype=np.int32)
    first = 0
    for array in arrays:
        host[first : first + array.size] = array.ravel()
        first += room_for([array.size])
    parts = parts_of(send(torch.from_numpy(host)), sizes)
    tokens, positions, *views = [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
    of_block = len(views) // n_layers
    there = []
    for _, longest in blocks:
        there.append(BlockRows(*views[:of_block], longest=longest))  # type: ignore[misc, arg-type]
        del views[:of_block]
    return tokens, positions, there


def _block_rows(rows: Rows, layer: int) -> tuple[list[npt.NDArray[Any]], int]:
    """The attributes of a block's `BlockRows`, on the host."""
    born = np.flatnonzero((rows.fork == layer) & (rows.parent >= 0))
    running = (rows.fork <= layer) * rows.masks[rows.sequence, layer]
    attending, feeding = np.flatnonzero(running & 1), np.flatnonzero(running & 2)
    members, sizes = np.unique(rows.sequence[attending], return_counts=True)
    positions = rows.positions[attending]
    return [
        np.stack([born, rows.parent[born]]),
        attending,
        rows.tables[rows.sequence[attending], layer, positions // PAGE],
        positions % PAGE,
        np.append(0, np.cumsum(sizes)),
        rows.tables[members, layer],
        rows.lengths[members],
        feeding,
    ], int(sizes.max(initial=0))


def room_for(sizes: Sequence[int]) -> int:
    """How many numbers a vector of parts of these sizes has."""
    return sum(-(-size // ALIGNED) * ALIGNED for size in sizes)


def parts_of(vector: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The parts of a vector [`room_for(sizes)`]: views [size] each."""
    padded = torch.split(vector, [room_for([size]) for size in sizes])
    return [part[:size] for part, size in zip(padded, sizes, strict=True)]
