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
class Teams:
    """Sequences whose first tokens lie in the same pages, so that these may be read once for all of a team.

    It changes how attention of one new token is computed, not what it comes to.

    Attributes:
        members: int32 [T, R], the sequences of each team, −1 behind its last; no sequence is in two.
        shared: int32 [S], how many first tokens of a sequence its team has in common; 0 for one that is in none.
    """

    members: Tensor
    shared: Tensor


@dataclass(frozen=True)
class PagedContext:
    """Keys and values of S sequences in the pages of one block.

    Attributes:
        pages: [P, 2, kv_heads, PAGE, D], the keys and then the values of PAGE tokens each.
        tables: int32 [S, M], the pages of each sequence in order. Rows may lie apart: `tables[:, layer]` of one table
            [S, L, M] for all blocks.
        lengths: int32 [S], the tokens C of each sequence that lie in pages.
        teams: which of them begin alike; None: nobody looked.
    """

    pages: Tensor
    tables: Tensor
    lengths: Tensor
    teams: Teams | None = None

    def known(self, sequence: int) -> Tensor:
        """Keys and values of a sequence's tokens in pages: [2, kv_heads, C, D]."""
        _, _, kv_heads, page, width = self.pages.shape
        length = int(self.lengths[sequence])
        known = self.pages[self.tables[sequence, : -(-length // page)].long()]
        return known.permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, width)[:, :, :length]


@dataclass(frozen=True)
class PagePlaces:
    """Where the keys and values of R new tokens go.

    Attributes:
        pages: [P, 2, kv_heads, PAGE, D], as of `PagedContext`.
        page: int32 [R].
        slot: int32 [R], the place in the page.
    """

    pages: Tensor
    page: Tensor
    slot: Tensor

    def write_(self, qkv: Tensor) -> None:
        """Copy the keys and values of rows [R, (heads + 2·kv_heads)·D] there."""
        _, _, kv_heads, _, width = self.pages.shape
        known = qkv[:, -2 * kv_heads * width :].view(-1, 2, kv_heads, width)
        self.pages[self.page.long(), :, :, self.slot.long()] = known


def visible_rows(positions: Tensor, sliding_window: int = 0) -> Tensor:
    """Which rows of a tree each row sees: positions int64 [W, T] → bool [W, T, T], True where it sees.

    A window is a tree of texts that share beginnings, written depth first: row r stands at position positions[w, r].
    It sees itself and, at each lower position, the latest row before it that stands there. With a sliding window of n
    tokens it sees only rows fewer than n positions before its own; 0: all.
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
    if sliding_window:
        places = positions.to(seen.device)
        seen &= places[:, :, None] - places[:, None, :] < sliding_window
    return seen.to(positions.device)


def causal_attention_reference(
    qkv: Tensor,
    tokens: int,
    heads: int,
    kv_heads: int,
    scale: float,
    positions: Tensor | None = None,
    *,
    sliding_window: int = 0,
    cap: float = 0.0,
) -> Tensor:
    """Attention inside each window of `tokens` rows: qkv [W·T, (heads + 2·kv_heads)·D] → [W·T, heads·D].

        out[t, h] = Σ_{s ≤ t} softmax_s(z[t, s]) v[s, g],    z[t, s] = scale · q[t, h] · k[s, g]

    with g = h // (heads / kv_heads); with a cap above 0, z = cap · tanh(scale · q · k / cap). A row of qkv holds its
    query heads first, then its key heads, then its value heads. With `positions` (int64 [P], P a multiple of T) a
    window is a tree: row r stands at positions[r mod P] and sees what `visible_rows` says, as does a sliding window.
    """
    wide = qkv.float() if qkv.dtype == torch.bfloat16 else qkv
    width = qkv.shape[1] // (heads + 2 * kv_heads)
    by_head = wide.view(-1, tokens, heads + 2 * kv_heads, width).transpose(1, 2)
    queries, keys, values = torch.split(by_head, [heads, kv_heads, kv_heads], dim=1)
    keys = keys.repeat_interleave(heads // kv_heads, dim=1)
    values = values.repeat_interleave(heads // kv_heads, dim=1)
    if positions is None:
        positions = torch.arange(tokens, device=qkv.device)
    by_window = positions.view(-1, tokens)
    seen = visible_rows(by_window, sliding_window).repeat(len(qkv) // len(positions), 1, 1)
    scores = _capped(scale * (queries @ keys.transpose(2, 3)), cap)
    mixed = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ values
    return mixed.transpose(1, 2).reshape(len(qkv), heads * width).to(qkv.dtype)


def causal_attention_slopes_reference(
    slope: Tensor, qkv: Tensor, mixed: Tensor, tokens: int, heads: int, kv_heads: int, scale: float
) -> Tensor:
    """The gradient of `causal_attention_reference` without its options for qkv, from a slope of its result `mixed`.

    With P the softmax of a head's scores and d the slope, both [W·T, heads·D]:

        ∂V = Pᵀ d,      ∂S = P ∘ (d Vᵀ − rows(d · mixed)),      ∂Q = scale · ∂S K,      ∂K = scale · ∂Sᵀ Q

    where rows(d · mixed) = Σ_j P ∘ (d Vᵀ); ∂K and ∂V sum over the query heads of a key head.

    Source: Dao et al., FlashAttention (arXiv 2205.14135), appendix B.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    width = qkv.shape[1] // (heads + 2 * kv_heads)

    def by_head(rows: Tensor) -> Tensor:
        """[W·T, n·D] → [W, kv_heads, n / kv_heads, T, D]."""
        group = rows.shape[1] // (kv_heads * width)
        parts = rows.to(wide).view(len(qkv) // tokens, tokens, kv_heads, group, width)
        return parts.permute(0, 2, 3, 1, 4)

    queries, keys, values = map(by_head, torch.split(qkv, [heads * width, kv_heads * width, kv_heads * width], dim=1))
    given, result = by_head(slope), by_head(mixed)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=qkv.device).triu(1)
    shares = (scale * (queries @ keys.transpose(-1, -2))).masked_fill(later, -math.inf).softmax(-1)
    of_scores = scale * shares * (given @ values.transpose(-1, -2) - (given * result).sum(-1, keepdim=True))
    parts = [
        of_scores @ keys,
        (of_scores.transpose(-1, -2) @ queries).sum(2, keepdim=True),
        (shares.transpose(-1, -2) @ given).sum(2, keepdim=True),
    ]
    joint = torch.cat([part.flatten(1, 2) for part in parts], dim=1)
    return joint.transpose(1, 2).reshape(qkv.shape).to(qkv.dtype)


def paged_attention_reference(
    qkv: Tensor, starts: Tensor, context: PagedContext, scale: float, sliding_window: int = 0, cap: float = 0.0
) -> Tensor:
    """Attention of sequences over their own tokens and a context in pages → [N, heads·D].

    For token i of a sequence whose context has C tokens, head h, g = h // (heads / kv_heads) and p = C + i:

        out[i, h] = Σ_j softmax_j(z[j]) v[j, g],   z[j] = scale · q[i, h] · k[j, g],   p − sliding_window < j ≤ p
        with a cap above 0, z[j] = cap · tanh(scale · q[i, h] · k[j, g] / cap)

    where j runs over the context (j < C, in pages) and then over the sequence's own tokens.

    Args:
        qkv: [N, (heads + 2·kv_heads)·D], the own tokens of all sequences one after the other, rotated.
        starts: int32 [S + 1], the row at which each sequence begins, and N.
        context: keys and values of the tokens before them.
        scale: of the products.
        sliding_window: how many tokens a token sees, itself included; 0: all before it.
        cap: soft cap of the scores; 0: none.
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
        scores = _capped(scale * (queries @ keys.repeat_interleave(heads // kv_heads, dim=0).transpose(1, 2)), cap)
        at = length + torch.arange(len(own), device=qkv.device)[:, None]
        other = torch.arange(length + len(own), device=qkv.device)[None]
        seen = (other <= at) & (other > at - (sliding_window or NO_WINDOW))
        mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ values.repeat_interleave(heads // kv_heads, dim=0)
        results.append(mixed.transpose(0, 1).reshape(len(own), heads * width).to(qkv.dtype))
    return torch.cat(results)


def decode_attention_reference(
    queries: Tensor, context: PagedContext, scale: float, sliding_window: int = 0, cap: float = 0.0
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
        known = context.known(sequence)[:, :, max(0, length - (sliding_window or NO_WINDOW)) :].to(wide)
        keys, values = known.repeat_interleave(heads // kv_heads, dim=1)
        scores = _capped(scale * (keys @ queries[sequence].to(wide).view(heads, width, 1))[:, :, 0], cap)
        out[sequence] = (scores.softmax(-1)[:, None] @ values).reshape(-1)
    return out.to(queries.dtype)


def _capped(scores: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(scores / cap) if cap else scores
