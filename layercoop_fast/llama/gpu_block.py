"""A llama-shaped block on states in a pool: it reads and writes the slots that an index table on the device names.

It computes the formula of `block.py` on the rows of the states in those slots. Products are cuBLAS's, queries, keys and
values as one and gate and up as another; attention is torch's scaled_dot_product_attention (FlashAttention where that
takes dtype and mask); norms with their residual sums, rotary and gates are kernels of `kernels/gpu`, each one pass over
its rows. No state is copied: the first norm reads it where it lies, and the last sum writes it where it goes.

Nothing here depends on what the table holds, and nothing waits for the device, so that a call can be captured in a
graph and repeated with another table. Intermediate results are torch's own allocations, in a graph the graph's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from layercoop_fast.kernels.pool import gather_add_norm, gather_norm, scatter_residual_
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.llama.block import BlockParts, Half, Norm, UnfitError
from layercoop_fast.llama.block_inputs import Rope, causal_mask
from layercoop_fast.llama.projections import Projection
from layercoop_fast.llama.steps import Added, add_and_norm, gate_rows, norm_rows, rotate_heads


class PoolBlock:
    """A llama-shaped block for windows of one length; `masked/pool_units.py` makes and checks it.

    Args:
        parts: of the block; the weights of the joint projections become views of new memory.
        rope: of windows of T tokens, all alike.

    Raises `UnfitError` where the scores have a soft cap, which torch's attention lacks.
    """

    def __init__(self, parts: BlockParts, rope: Rope) -> None:
        if parts.score_cap:
            raise UnfitError("its scores have a soft cap, which attention on a GPU lacks")
        self.parts = parts
        self.rope = rope
        self.qkv = Projection([parts.query, parts.key, parts.value])
        self.output = Projection([parts.output])
        self.gate_up = Projection([parts.gate, parts.up])
        self.down = Projection([parts.down])
        self._seen: Tensor | None = None
        if rope.sliding_window:
            self._seen = causal_mask(rope.tokens, rope.sliding_window, rope.cos.device)

    @property
    def holds(self) -> bool:
        """Whether its joint weights are still whole: a block that shares some with a later one has lost them to it."""
        return all(projection.holds for projection in (self.qkv, self.output, self.gate_up, self.down))

    @property
    def bytes_a_row(self) -> int:
        """Bytes of intermediate results that a row (token) of a call takes at most."""
        hidden, inner = self.parts.hidden, self.parts.inner
        attending = hidden + self.qkv.out_features + 2 * self.parts.heads * self.parts.head_dim
        return (2 * hidden + max(attending, 3 * inner + hidden)) * self.parts.dtype.itemsize

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the block on hidden [W, T, H]; returns a new tensor."""
        slots = torch.zeros(1, dtype=torch.int32, device=hidden.device)
        pool = hidden.flatten(0, 1)[None].clone()
        self.run(pool, slots, slots)
        return pool.view_as(hidden)

    def run(self, pool: Tensor, sources: Tensor, targets: Tensor, half: Half | None = None) -> None:
        """Run the block, or one half of it, on the states in `sources`, each into its target.

        pool: [S, W·T, H], any W; sources, targets: int32 [B] on the pool's device. A target may be its own state's
        source, but neither another's source nor its target. Both halves one after the other are the block.
        """
        parts = self.parts
        if half == "mlp":
            delta = self.feed(_gathered(pool, sources, parts.mlp_norm))
            scatter_residual_(pool, targets, delta, sources=sources)
            return
        delta = self.behind_attention(self._attend(_gathered(pool, sources, parts.attention_norm)))
        if half == "attn":
            scatter_residual_(pool, targets, delta, sources=sources)
            return
        norm = parts.mlp_norm
        if norm is None:
            total = normed = _gathered(pool, sources, None) + delta
        else:
            total, normed = gather_add_norm(pool, sources, delta, norm.weight, norm.eps, gemma=norm.gemma)
        scatter_residual_(pool, targets, self.feed(normed), residual=total)

    def _attend(self, normed: Tensor) -> Tensor:
        """What attention mixes, before its output projection: [R, H] → [R, heads·D]."""
        parts, seen = self.parts, self._seen
        qkv = self.project(normed, self.rope.cos, self.rope.sin)
        by_head = qkv.view(-1, self.rope.tokens, parts.heads + 2 * parts.kv_heads, parts.head_dim).transpose(1, 2)
        queries, keys, values = torch.split(by_head, [parts.heads, parts.kv_heads, parts.kv_heads], dim=1)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=seen,
            is_causal=seen is None,
            scale=parts.scale,
            enable_gqa=parts.heads != parts.kv_heads,
        )
        return mixed.transpose(1, 2).reshape(len(qkv), parts.heads * parts.head_dim)

    def project(self, normed: Tensor, cos: Tensor, sin: Tensor, into: PagePlaces | None = None) -> Tensor:
        """Queries and keys, rotated, and values: [R, H] → [R, (heads + 2·kv_heads)·D]; row r is turned by row r mod T.

        cos, sin: [T, D]. Keys and values go `into` pages too.
        """
        return rotate_heads(self.parts, F.linear(normed, self.qkv.weight, self.qkv.bias), cos, sin, into)

    def feed(self, normed: Tensor) -> Tensor:
        """What the MLP adds: [R, H] → [R, H]."""
        inner = gate_rows(self.parts, F.linear(normed, self.gate_up.weight, self.gate_up.bias))
        return what_is_added(self.parts, F.linear(inner, self.down.weight, self.down.bias), self.parts.after_mlp)

    # A step of generation (`runtime/gpu.py`) holds its states itself, and calls these three.

    def normed_heads(
        self, hidden: Tensor, added: Added | None, cos: Tensor, sin: Tensor, into: PagePlaces
    ) -> tuple[Tensor, Tensor]:
        """The stream with what is to be added to it, and as `project` of its norm: [R, H], [R, (heads + 2·kv_heads)·D].

        cos, sin: [R, D].
        """
        total, normed = add_and_norm(self.parts.attention_norm, hidden, added)
        return total, self.project(normed, cos, sin, into)

    def behind_attention(self, mixed: Tensor) -> Tensor:
        """What attention adds, of what it mixed: [R, heads·D] → [R, H]."""
        delta = F.linear(mixed, self.output.weight, self.output.bias)
        return what_is_added(self.parts, delta, self.parts.after_attention)

    def normed_mlp(self, hidden: Tensor, added: Added | None = None) -> tuple[Tensor, Tensor]:
        """The stream with what is to be added to it, and as `feed` of its norm: both [R, H]."""
        total, normed = add_and_norm(self.parts.mlp_norm, hidden, added)
        return total, self.feed(normed)


def what_is_added(parts: BlockParts, delta: Tensor, after: Norm | None) -> Tensor:
    """What a half adds to the stream, factor · after(delta): [R, H] → [R, H]."""
    delta = norm_rows(after, delta)
    return delta if parts.factor == 1 else delta * parts.factor


def _gathered(pool: Tensor, slots: Tensor, norm: Norm | None) -> Tensor:
    """The norm of the states in slots of a pool, or the states themselves: [B·T, H]."""
    if norm is None:
        return pool[slots.long()].flatten(0, 1)
    return gather_norm(pool, slots, norm.weight, norm.eps, gemma=norm.gemma)
