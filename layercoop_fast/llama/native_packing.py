"""Weights of a llama-shaped model, packed for the C++ step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from layercoop_fast import _C
from layercoop_fast.kernels.quantise import ORIGINS
from layercoop_fast.llama.block import ATTENTION, MLP, BlockParts, LinearRows, Norm
from layercoop_fast.llama.model import ModelParts

Floats = npt.NDArray[np.float32]

FORMATS = ("fp32", "bf16", "int8", "int4")
_INTEGERS = ("int8", "int4")
TILE = 16
"""Rows of gate, then as many of up: what the C++ step joins without a barrier."""

# Numbers of the pieces in which weights are widened to fp32 while they are packed.
_PIECE = 1 << 22


def _origin(format: str, *parts: Tensor) -> str:
    """What weights were last rounded to, which tells the grid they lie on: also where fp32 holds what bf16 could."""
    if format in _INTEGERS and all(part.dtype == torch.float32 for part in parts):
        for dtype in (torch.bfloat16, torch.float16):
            # Most that are of another kind show it in a few rows.
            if all(torch.equal(rows.to(dtype).float(), rows) for part in parts for rows in (part[:TILE], part)):
                return ORIGINS[dtype]
    return ORIGINS[parts[0].dtype]


def pack_rows(format: str, parts: Sequence[Tensor]) -> _C.PackedMatrix:
    """Matrices [rows, columns] one under the other, packed."""
    columns = parts[0].shape[1]
    packed = _C.PackedMatrix(format, sum(len(part) for part in parts), columns)
    first = 0
    for part in parts:
        origin = _origin(format, part.detach())
        for piece in torch.split(part, max(TILE, _PIECE // columns // TILE * TILE)):
            packed.fill(first, np.ascontiguousarray(piece.detach().float().numpy()), origin)
            first += len(piece)
    return packed


def pack_gate_up(format: str, gate: Tensor, up: Tensor) -> _C.PackedMatrix:
    """Sixteen rows of gate and sixteen of up, alternating, both [I, H]; padded with zeros."""
    inner, columns = gate.shape
    padded = -(-inner // TILE) * TILE
    packed = _C.PackedMatrix(format, 2 * padded, columns)
    rows = max(TILE, _PIECE // (2 * columns) // TILE * TILE)
    origin = _origin(format, gate.detach(), up.detach())
    for first in range(0, inner, rows):
        pair = [_padded(part[first : first + rows].detach().float()) for part in (gate, up)]
        turns = torch.stack([part.view(-1, TILE, columns) for part in pair], dim=1)
        packed.fill(2 * first, np.ascontiguousarray(turns.view(-1, columns).numpy()), origin)
    return packed


def _padded(rows: Tensor) -> Tensor:
    missing = -len(rows) % TILE
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def _bias(*layers: nn.Linear | LinearRows) -> Floats | None:
    """Biases one after the other, fp32; zeros where only other layers have one."""
    biases = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return None
    parts = [
        torch.zeros(layer.out_features) if bias is None else bias.detach().float()
        for layer, bias in zip(layers, biases, strict=True)
    ]
    return _floats(torch.cat(parts))


def _gate_up_bias(block: BlockParts) -> Floats | None:
    both = _bias(block.gate, block.up)
    if both is None:
        return None
    pair = [_padded(part) for part in torch.from_numpy(both).chunk(2)]
    return _floats(torch.stack([part.view(-1, TILE) for part in pair], dim=1).reshape(-1))


def _norm(norm: Norm | None) -> tuple[Floats, float] | None:
    return None if norm is None else (_floats(norm.scale()), norm.eps)


def _floats(values: Tensor) -> Floats:
    found: Floats = values.float().contiguous().numpy()
    return found


class Packed:
    """A model in C++ that grows block by block.

    Args:
        weights: of the model; only its sizes are read here.
        format: of the matrices. With int4 embedding and head are int8.
        drop: called with a block's linear maps once they are packed.

    Attributes:
        model: what runs.
        nbytes: of the packed matrices.
        half_bytes: of them those of the attention and of the MLP, a pair for each block.
    """

    def __init__(self, weights: ModelParts, format: str, drop: Callable[[Sequence[nn.Linear]], None]) -> None:
        first = weights.first
        # Nothing else of the weights is kept: one tensor would hold the file that all of them are mapped from.
        self._rotaries, self._limit = weights.rotaries, weights.max_tokens
        self.format = format
        self.drop = drop
        self.nbytes = 0
        self.half_bytes: list[tuple[int, int]] = []
        self.positions = 0
        self.model = _C.DecodeModel(
            hidden=weights.hidden,
            heads=first.heads,
            kv_heads=first.kv_heads,
            width=first.head_dim,
            inner=first.inner,
            scale=first.scale,
            score_cap=first.score_cap,
            activation=first.activation,
        )
        self.reach(1)

    def reach(self, positions: int) -> None:
        """Make sure that there are cosines and sines for this number of positions."""
        if positions <= self.positions:
            return
        limit = positions if self._limit is None else self._limit
        count = max(positions, min(2 * positions, limit), 256)
        tables = [rotary.table(count) for rotary in self._rotaries]
        self.model.set_rotaries([(_floats(cos), _floats(sin)) for cos, sin in tables])
        self.positions = count

    def add_block(self, block: BlockParts | None, rotary: int, halves: int = ATTENTION | MLP) -> None:
        """Pack the halves of a block that are held, and let go of all its matrices; None holds its place.

        `rotary` is the number of its rotary table, -1 for none.
        """
        if block is None:
            self.half_bytes.append((0, 0))
            return self.model.add_block()
        before = self.nbytes
        arguments: dict[str, Any] = {"rotary": rotary, "window": block.sliding_window}
        if halves & ATTENTION:
            arguments |= {
                "attention_norm": _norm(block.attention_norm),
                "qkv": self._keep(pack_rows(self.format, [m.weight for m in (block.query, block.key, block.value)])),
                "qkv_bias": _bias(block.query, block.key, block.value),
                "query_norm": _norm(block.query_norm),
                "key_norm": _norm(block.key_norm),
                "output": self._keep(pack_rows(self.format, [block.output.weight])),
                "output_bias": _bias(block.output),
                "after_attention": _norm(block.after_attention),
            }
        attention = self.nbytes - before
        if halves & MLP:
            arguments |= {
                "mlp_norm": _norm(block.mlp_norm),
                "gate_up": self._keep(pack_gate_up(self.format, block.gate.weight, block.up.weight)),
                "gate_up_bias": _gate_up_bias(block),
                "down": self._keep(pack_rows(self.format, [block.down.weight])),
                "down_bias": _bias(block.down),
                "after_mlp": _norm(block.after_mlp),
            }
        self.half_bytes.append((attention, self.nbytes - before - attention))
        self.model.add_block(**arguments)
        self.drop(block.layers)
        return None

    def set_ends(self, weights: ModelParts) -> None:
        """Pack embedding and head, once where they are the same."""
        format = "int8" if self.format == "int4" else self.format
        projection = weights.head.projection
        head = self._keep(pack_rows(format, [projection.weight]))
        embedding = head if weights.tied else self._keep(pack_rows(format, [weights.embedding]))
        self.model.set_ends(
            embedding=embedding,
            final_norm=(_floats(weights.final_norm.scale()), weights.final_norm.eps),
            head=head,
            head_bias=_bias(projection),
            embedding_scale=weights.embedding_scale,
            logit_scale=weights.head.scale,
            logit_cap=weights.head.soft_cap or 0.0,
        )
        self.drop([projection])

    def _keep(self, packed: _C.PackedMatrix) -> _C.PackedMatrix:
        self.nbytes += packed.nbytes
        return packed
