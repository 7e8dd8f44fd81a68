"""Steps of a block that follow from its description and are the same in every form of it, on CPU and GPU."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.reference.blocks import HeadNorms
from layercoop_fast.kernels.rms_norm import add_branch, add_kept, add_rms_norm, rms_norm
from layercoop_fast.kernels.rotary import rotary_
from layercoop_fast.kernels.swiglu import geglu, swiglu
from layercoop_fast.llama.block import BlockParts, Norm


def norm_rows(norm: Norm | None, x: Tensor, out: Tensor | None = None) -> Tensor:
    """The norm of rows x [R, H] → [R, H]; without a norm x itself, or its copy in `out`."""
    if norm is None:
        return x if out is None else out.copy_(x)
    return rms_norm(x, norm.weight, norm.eps, gemma=norm.gemma, out=out)


def add_half(x: Tensor, delta: Tensor, after: Norm | None, factor: float, total: Tensor | None = None) -> Tensor:
    """Add a half's result to the stream: x + factor · after(delta), [R, H]."""
    if after is None:
        return add_branch(x, delta, factor=factor, total=total)
    return add_branch(x, delta, after=after.weight, eps=after.eps, gemma=after.gemma, factor=factor, total=total)


class Added(NamedTuple):
    """What a half is still to add to the stream.

    Attributes:
        delta: [R, H].
        keep: int32 [R], not 0 where it is added; None: to all rows.
    """

    delta: Tensor
    keep: Tensor | None = None

    def onto(self, x: Tensor) -> Tensor:
        """The sum with rows [R, H]; where a row is not kept its delta may be anything."""
        return x + self.delta if self.keep is None else add_kept(x, self.delta, self.keep)


def add_and_norm(norm: Norm | None, x: Tensor, added: Added | None) -> tuple[Tensor, Tensor]:
    """Rows x [R, H] with what is to be added to them, and the norm of that: both [R, H]."""
    if added is None:
        return x, norm_rows(norm, x)
    if norm is None:
        total = added.onto(x)
        return total, total
    return add_rms_norm(x, added.delta, norm.weight, norm.eps, gemma=norm.gemma, keep=added.keep)


def rotate_heads(parts: BlockParts, qkv: Tensor, cos: Tensor, sin: Tensor, into: PagePlaces | None = None) -> Tensor:
    """Norm queries and keys where the block does, and rotate them where it does, in place.

    qkv: [R, (heads + 2·kv_heads)·D]; cos, sin: [T, D]. Row r is rotated by row r mod T. Keys and values are then
    written `into` pages too.
    """
    queries, keys = parts.query_norm, parts.key_norm
    if not parts.rotates:
        if queries is None and keys is None:
            if into is not None:
                into.write_(qkv)
            return qkv
        cos, sin = qkv.new_ones(1, parts.head_dim), qkv.new_zeros(1, parts.head_dim)
    eps, gemma = (0.0, False) if queries is None else (queries.eps, queries.gemma)
    query, key = (None if norm is None else norm.weight for norm in (queries, keys))
    return rotary_(qkv, cos, sin, parts.heads, parts.kv_heads, HeadNorms(query, key, eps, gemma), into)


def gate_rows(parts: BlockParts, gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply the activation of the gates by the ups: [R, 2I] → [R, I]."""
    return (swiglu if parts.activation == "silu" else geglu)(gate_up, out=out)
