"""Causal attention: within windows or trees of tokens, and over keys and values that lie in pages.

Scores, softmax and sums are fp32 (float64 for float64 inputs); the result is rounded once, to the inputs' dtype.

Source: Vaswani et al. (arXiv 1706.03762); grouped queries: Ainslie et al. (arXiv 2305.13245); pages: Kwon et al. (arXiv
2309.06180); soft caps: Gemma 2 (arXiv 2408.00118).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A window that no sequence fills: 32 bits hold it, and its sum with a position.
NO_WINDOW = 1 << 30


@dataclass(frozen=True)
class PagedContext:
    """Keys and values of S sequences in the pages of one block.

    Attributes:
        pages: [P, 2, kv_heads, PAGE, D], the keys and then the values of PAGE tokens each.
        tables: int32 [S, M], the pages of each sequence in order. Rows may lie apart: `tables[:, layer]` of one table
            [S, L, M] for all blocks.
        lengths: int32 [S], the tokens C of each sequence that lie in pages.
    """

    pages: Tensor
    tables: Tensor
    lengths: Tensor

    def known(self, sequence: int) -> Tensor:
        """Keys and values of a sequence's tokens in pages: [2, kv_heads, C, D]."""
        _, _, kv_heads, page, width = self.pages.shape
        length = int(self.lengths[sequence])
        known = self.pages[self.tables[sequence, : -(-length // page)].long()]
        return known.permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, width)[:, :, :length]


def visible_rows(positions: Tensor) -> Tensor:
    """Which rows of a tree each row sees: positions int64 [W, T] → bool [W, T, T], True where it sees.

    A window is a tree of texts that share beginnings, written depth first: row r stands at position positions[w, r].
    It sees itself and, at each lower position, the latest row before it that stands there.
    """
    windows, tokens = positions.shape
    seen = torch.zeros(windows, tokens, tokens, dtype=torch.bool)
    for window, row in enumerate(positions.tolist()):
        latest: dict[int, int] = {}
        for token, position in enumerate(row):
            latest[position] = token
            if position:
                seen[window, token] = seen[window, latest[position - 1]]
            seen[window, token, token] = True
    return seen.to(positions.device)


def causal_attention_reference(
    qkv: Tensor, tokens: int, heads: int, kv_heads: int, scale: float, positions: Tensor | None = None
) -> Tensor:
    """Attention inside each window of `tokens` rows: qkv [W·T, (heads + 2·kv_heads)·D] → [W·T, heads·D].

        out[t, h] = Σ_{s ≤ t} softmax_s(scale · q[t, h] · k[s, g]) v[s, g],    g = h // (heads / kv_heads)

    A row of qkv holds its query heads first, then its key heads, then its value heads. With `positions` (int64 [P], P a
    multiple of T) a window is a tree: row r stands at positions[r mod P] and sees what `visible_rows` says.
    """
    wide = qkv.float() if qkv.dtype == torch.bfloat16 else qkv
    width = qkv.shape[1] // (heads + 2 * kv_heads)
    by_head = wide.view(-1, tokens, heads + 2 * kv_heads, width).transpose(1, 2)
    queries, keys, values = torch.split(by_head, [heads, kv_heads, kv_heads], dim=1)
    keys = keys.repeat_interleave(heads // kv_heads, dim=1)
    values = values.repeat_interleave(heads // kv_heads, dim=1)
    if positions is None:
        seen = torch.ones(1, tokens, tokens, dtype=torch.bool, device=qkv.device).tril()
    else:
        seen = visible_rows(positions.view(-1, tokens)).repeat(len(qkv) // len(positions), 1, 1)
    scores = (scale * (queries @ keys.transpose(2, 3))).masked_fill(~seen[:, None], -math.inf)
    mixed = scores.softmax(-1) @ values
    return mixed.transpose(1, 2).reshape(len(qkv), heads * width).to(qkv.dtype)


def paged_attention_reference(
    qkv: Tensor, starts: Tensor, context: PagedContext, scale: float, window: int | None, soft_cap: float | None
) -> Tensor:
    """Attention of sequences over their own tokens and a context in pages → [N, heads·D].

    For token i of a sequence whose context has C tokens, head h, g = h // (heads / kv_heads) and p = C + i:

        out[i, h] = Σ_j softmax_j(z[j]) v[j, g],   z[j] = scale · q[i, h] · k[j, g],   p − window < j ≤ p
        with a soft cap z[j] = cap · tanh(scale · q[i, h] · k[j, g] / cap)

    where j runs over the context (j < C, in pages) and then over the sequence's own tokens.

    Args:
        qkv: [N, (heads + 2·kv_heads)·D], the own tokens of all sequences one after the other, rotated.
        starts: int32 [S + 1], the row at which each sequence begins, and N.
        context: keys and values of the tokens before them.
        scale: of the products.
        window: how many tokens a token sees, itself included; None: all.
        soft_cap: see above; None: no cap.
    """
    kv_heads, width = context.pages.shape[2], context.pages.shape[4]
    heads = qkv.shape[1] // width - 2 * kv_heads
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    results = [qkv.new_empty(0, heads * width)]
    for sequence, length in enumerate(context.lengths.tolist()):
        own = qkv[int(starts[sequence]) : int(starts[sequence + 1])].to(wide).view(-1, heads + 2 * kv_heads, width)
        queries, keys, values = torch.split(own.transpose(0, 1), [heads, kv_heads, kv_heads])
        known = context.known(sequence).to(wide)
        keys, values = torch.cat([known[0], keys], dim=1), torch.cat([known[1], values], dim=1)
        scores = scale * (queries @ keys.repeat_interleave(heads // kv_heads, dim=0).transpose(1, 2))
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        at = length + torch.arange(len(own), device=qkv.device)[:, None]
        other = torch.arange(length + len(own), device=qkv.device)[None]
        seen = (other <= at) & (other > at - (window or NO_WINDOW))
        mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ values.repeat_interleave(heads // kv_heads, dim=0)
        results.append(mixed.transpose(0, 1).reshape(len(own), heads * width).to(qkv.dtype))
    return torch.cat(results)


def decode_attention_reference(
    queries: Tensor, context: PagedContext, scale: float, window: int | None, soft_cap: float | None
) -> Tensor:
    """Attention of the last token of each sequence, whose key and value lie in its pages already → [S, heads·D].

    As `paged_attention_reference` with queries [S, heads·D] alone and p = lengths[s] − 1. A sequence without pages,
    tables[s, 0] = −1, gets 0: its mask removes the block.
    """
    kv_heads, width = context.pages.shape[2], context.pages.shape[4]
    wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
    out = torch.zeros(queries.shape, dtype=wide, device=queries.device)
    heads = queries.shape[1] // width
    for sequence, length in enumerate(context.lengths.tolist()):
        if int(context.tables[sequence, 0]) < 0 or length == 0:
            continue
        known = context.known(sequence)[:, :, max(0, length - (window or NO_WINDOW)) :].to(wide)
        keys, values = known.repeat_interleave(heads // kv_heads, dim=1)
        scores = scale * (keys @ queries[sequence].to(wide).view(heads, width, 1))[:, :, 0]
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        out[sequence] = (scores.softmax(-1)[:, None] @ values).reshape(-1)
    return out.to(queries.dtype)
