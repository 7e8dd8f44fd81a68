"""A llama-shaped block on states in a pool: it reads and writes the slots that an index table on the device names.

With x the rows of the picked states, it is `llama/cpu_block.py`'s two lines,

    x = x + o_proj(attention(rotary(qkv_proj(rms_norm(x)))))
    x = x + down_proj(silu(gate_proj(n)) · up_proj(n)),   n = rms_norm(x)

and what it takes from libraries and what not is: products by cuBLAS, queries, keys and values as one and gate and up as
another; attention by torch's scaled_dot_product_attention (FlashAttention where that takes the dtype); norms with their
residual sums, rotary and SwiGLU by the kernels of `kernels/gpu`, each one pass over its rows. No state is copied: the
first norm reads it where it lies, and the last sum writes it where it goes.

Nothing here depends on what the table holds, and nothing waits for the device, so that a call can be captured in a
graph and repeated with another table. Intermediate results are torch's own allocations, in a graph the graph's.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from layercoop_fast.kernels.pool import gather_add_norm, gather_norm, scatter_residual_
from layercoop_fast.kernels.rms_norm import rms_norm
from layercoop_fast.kernels.rotary import rotary_
from layercoop_fast.kernels.swiglu import swiglu
from layercoop_fast.llama.cpu_block import Half
from layercoop_fast.llama.projections import Projection
from layercoop_fast.llama.shape import Norm, Parts, Rope


class PoolBlock:
    """A llama-shaped block for windows of one length; `masked/pool_units.py` makes and checks it.

    Args:
        parts: the block's modules; the weights of the joint projections become views of new memory.
        rope: of windows of T tokens, all alike.
    """

    def __init__(self, parts: Parts, rope: Rope) -> None:
        self.parts = parts
        self.rope = rope
        self.head_dim = parts.head_dim
        self.scale = parts.scale
        self.heads = parts.query.out_features // parts.head_dim
        self.kv_heads = parts.key.out_features // parts.head_dim
        self.input_norm = parts.input_norm
        self.mlp_norm = parts.mlp_norm
        self.query_norm = parts.query_norm
        self.key_norm = parts.key_norm
        self.qkv = Projection([parts.query, parts.key, parts.value])
        self.output = Projection([parts.output])
        self.gate_up = Projection([parts.gate, parts.up])
        self.down = Projection([parts.down])

    @property
    def holds(self) -> bool:
        """Whether its joint weights are still whole: a block that shares some with a later one has lost them to it."""
        return all(projection.holds for projection in (self.qkv, self.output, self.gate_up, self.down))

    @property
    def bytes_a_row(self) -> int:
        """Bytes of intermediate results that a row (token) of a call takes at most."""
        hidden, inner = len(self.input_norm.weight), self.gate_up.out_features // 2
        attending = hidden + self.qkv.out_features + 2 * self.heads * self.head_dim
        return (2 * hidden + max(attending, 3 * inner + hidden)) * self.input_norm.weight.element_size()

    def run(self, pool: Tensor, sources: Tensor, targets: Tensor, half: Half | None = None) -> None:
        """Run the block, or one half of it, on the states in `sources`, each into its target.

        pool: [S, W·T, H], any W; sources, targets: int32 [B] on the pool's device. A target may be its own state's
        source, but neither another's source nor its target. Both halves one after the other are the block.
        """
        if half == "mlp":
            normed = gather_norm(pool, sources, self.mlp_norm.weight, self.mlp_norm.eps)
            scatter_residual_(pool, targets, self.feed(normed), sources=sources)
            return
        mixed = self._attend(gather_norm(pool, sources, self.input_norm.weight, self.input_norm.eps))
        delta = F.linear(mixed, self.output.weight, self.output.bias)
        if half == "attn":
            scatter_residual_(pool, targets, delta, sources=sources)
            return
        total, normed = gather_add_norm(pool, sources, delta, self.mlp_norm.weight, self.mlp_norm.eps)
        scatter_residual_(pool, targets, self.feed(normed), residual=total)

    def _attend(self, normed: Tensor) -> Tensor:
        """What attention mixes, before its output projection: [R, H] → [R, heads·D]."""
        qkv = self.project(normed, self.rope.cos, self.rope.sin)
        by_head = qkv.view(-1, self.rope.tokens, self.heads + 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        queries, keys, values = torch.split(by_head, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=self.scale, enable_gqa=self.heads != self.kv_heads
        )
        return mixed.transpose(1, 2).reshape(len(qkv), self.heads * self.head_dim)

    def project(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries and keys, rotated, and values: [R, H] → [R, (heads + 2·kv_heads)·D]; row r is turned by row r mod T.

        cos, sin: [T, D].
        """
        return turn_heads(self, F.linear(normed, self.qkv.weight, self.qkv.bias), cos, sin)

    def feed(self, normed: Tensor) -> Tensor:
        """What the MLP adds: [R, H] → [R, H]."""
        inner = swiglu(F.linear(normed, self.gate_up.weight, self.gate_up.bias))
        return F.linear(inner, self.down.weight, self.down.bias)

    # Generation's steps (`runtime/gpu.py`) hold their states themselves, and take a block in these three.

    def normed_heads(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As `project`, of states before the norm."""
        return self.project(rms_norm(hidden, self.input_norm.weight, self.input_norm.eps), cos, sin)

    def behind_attention(self, mixed: Tensor) -> Tensor:
        """What attention adds, of what it mixed: [R, heads·D] → [R, H]."""
        return F.linear(mixed, self.output.weight, self.output.bias)

    def normed_mlp(self, hidden: Tensor) -> Tensor:
        """As `feed`, of states before the norm."""
        return self.feed(rms_norm(hidden, self.mlp_norm.weight, self.mlp_norm.eps))


class Heads(Protocol):
    """What a block says of its queries and keys."""

    heads: int
    kv_heads: int
    query_norm: Norm | None
    key_norm: Norm | None


def turn_heads(block: Heads, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries and keys in place, behind their norms where a block has those; row r by row r mod T of cos."""
    return rotary_(
        qkv,
        cos,
        sin,
        block.heads,
        block.kv_heads,
        query_norm=None if block.query_norm is None else block.query_norm.weight,
        key_norm=None if block.key_norm is None else block.key_norm.weight,
        eps=0.0 if block.query_norm is None else block.query_norm.eps,
    )
