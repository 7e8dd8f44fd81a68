"""Causal attention inside short windows, on the joint projection of queries, keys and values.

For the query at token t of a window, head h, and g = h // (heads / kv_heads):

    out[t, h] = Σ_{s ≤ t} softmax_s(scale · q[t, h] · k[s, g]) v[s, g]

qkv: [W·T, (heads + 2·kv_heads)·D], a row's query heads first, then its key heads, then its value heads; out: [W·T,
heads·D]; fp32 or bf16. Scores, softmax and sums are fp32; only the result is rounded. Where some tokens of each window
are asked for, out has their rows alone, to the bits they have among all.

Keys and values of one head of a window are held in fp32 (8·T·D bytes a thread). Made for windows that fit a
processor's cache (T·D up to some 10⁵), it was seen to be faster than torch's own attention up to 4,096 tokens
(docs/performance.md).

Source: Vaswani et al. (arXiv 1706.03762); grouped queries: Ainslie et al. (arXiv 2305.13245).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, is_native, require, require_matrix


def causal_attention_reference(qkv: Tensor, tokens: int, heads: int, kv_heads: int, scale: float) -> Tensor:
    """The oracle: one softmax over a square of scores with its upper half struck out."""
    wide = qkv.float() if qkv.dtype == torch.bfloat16 else qkv
    width = qkv.shape[1] // (heads + 2 * kv_heads)
    by_head = wide.view(-1, tokens, heads + 2 * kv_heads, width).transpose(1, 2)
    queries, keys, values = torch.split(by_head, [heads, kv_heads, kv_heads], dim=1)
    keys = keys.repeat_interleave(heads // kv_heads, dim=1)
    values = values.repeat_interleave(heads // kv_heads, dim=1)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=qkv.device).triu(1)
    scores = (scale * (queries @ keys.transpose(2, 3))).masked_fill(later, -math.inf)
    mixed = scores.softmax(-1) @ values
    return mixed.transpose(1, 2).reshape(len(qkv), heads * width).to(qkv.dtype)


def causal_attention(
    qkv: Tensor,
    tokens: int,
    heads: int,
    kv_heads: int,
    scale: float,
    *,
    asked: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend inside each window: [W·T, (heads + 2·kv_heads)·D] → [W·T, heads·D].

    With `asked` (int64 [S], ascending tokens of a window) only these attend, → [W·S, heads·D], and what stands in place
    of the others' queries does not matter.
    """
    require_matrix(qkv, "qkv")
    rows, columns = qkv.shape
    groups = heads + 2 * kv_heads
    if tokens < 1 or rows % tokens:
        raise RequestError(f"qkv: {rows} rows are not windows of {tokens} tokens")
    if min(heads, kv_heads) < 1 or heads % kv_heads or columns % groups or columns == 0:
        raise RequestError(f"qkv: {columns} columns are not {heads} + 2 x {kv_heads} heads of one width")
    if not (scale > 0 and math.isfinite(scale)):
        raise RequestError(f"scale: {scale} is not a positive number")
    asked = torch.arange(tokens) if asked is None else _checked(asked, tokens)
    shape = (rows // tokens * len(asked), heads * (columns // groups))
    if out is None:
        out = qkv.new_empty(shape)
    require_matrix(out, "out")
    require(out, "out", shape, qkv)
    if not is_native(qkv):
        mixed = causal_attention_reference(qkv, tokens, heads, kv_heads, scale)
        return out.copy_(mixed.view(-1, tokens, shape[1])[:, asked.to(qkv.device)].reshape(shape))
    _C.causal_attention(array(qkv), tokens, heads, kv_heads, scale, asked.contiguous().numpy(), array(out))
    return out


def _checked(asked: Tensor, tokens: int) -> Tensor:
    if asked.dim() != 1 or asked.dtype != torch.int64:
        raise RequestError(f"asked: expected int64 tokens [S], got {asked.dtype} {list(asked.shape)}")
    if len(asked) and (int(asked[0]) < 0 or int(asked[-1]) >= tokens or bool((asked.diff() <= 0).any())):
        raise RequestError(f"asked: expected ascending tokens of a window, from 0 to {tokens - 1}")
    return asked
