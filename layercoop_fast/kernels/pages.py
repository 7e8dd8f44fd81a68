"""Attention over keys and values in pages: prompts whose beginning is known, and one new token a sequence.

A context is what a mask's kept prefix and the first tokens of a text have computed. Its pages are shared by every mask
and text that begin so; only what differs is computed. The formulas are those of `reference/attention.py`; on a GPU
`gpu/paged_attention.py` and `gpu/decode_attention.py` compute them, or torch's operations where a kernel is not right.

Contents of tables, starts and lengths are not checked: reading them would make the host wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.memory import require_index, require_matrix
from layercoop_fast.kernels.reference.attention import (
    NO_WINDOW,
    PagedContext,
    paged_attention_reference,
)

# CUDA runs at most so many programs side by side in the third direction.
MOST_SEQUENCES = 65535


def paged_attention(
    qkv: Tensor,
    starts: Tensor,
    context: PagedContext,
    longest: int,
    scale: float,
    sliding_window: int = 0,
    cap: float = 0.0,
) -> Tensor:
    """Attend: qkv [N, (heads + 2·kv_heads)·D] → [N, heads·D]; arguments as of `paged_attention_reference`.

    `longest` is a bound of the own tokens of a sequence.

    Raises:
        RequestError: for shapes, dtypes and numbers that do not fit, and more than 65,535 sequences.
    """
    require_matrix(qkv, "qkv")
    _check(context, qkv, scale, sliding_window, cap)
    require_index(starts, "starts", len(context.lengths) + 1, qkv)
    kv_heads, width = context.pages.shape[2], context.pages.shape[4]
    heads = qkv.shape[1] // width - 2 * kv_heads
    if qkv.shape[1] % width or heads < 1 or heads % kv_heads:
        raise RequestError(f"qkv: {qkv.shape[1]} columns are not heads of {width} over {kv_heads} key and value heads")
    if longest < 0:
        raise RequestError(f"longest: {longest} is not a number of tokens")
    if (count := len(context.lengths)) > MOST_SEQUENCES:
        raise RequestError(f"lengths: {count} sequences are more than the {MOST_SEQUENCES} of one call")
    if not by_kernel("paged_attention", qkv):
        return paged_attention_reference(qkv, starts, context, scale, sliding_window, cap)
    from layercoop_fast.kernels.gpu.paged_attention import launch_paged

    out = qkv.new_empty(len(qkv), heads * width)
    launch_paged(qkv, starts, context, out, longest, scale, sliding_window, cap)
    return out


def decode_attention(
    queries: Tensor, context: PagedContext, scale: float, sliding_window: int = 0, cap: float = 0.0
) -> Tensor:
    """Attend: queries [S, heads·D] → [S, heads·D]; arguments as of `decode_attention_reference`.

    Rows of `queries` may lie apart: the first columns of a joint projection.

    Raises:
        RequestError: for shapes, dtypes and numbers that do not fit.
    """
    if queries.dim() != 2 or queries.stride(1) != 1 or len(queries) != len(context.lengths):
        raise RequestError(f"queries: expected [{len(context.lengths)}, heads·D], got {list(queries.shape)}")
    _check(context, queries, scale, sliding_window, cap)
    kv_heads, width = context.pages.shape[2], context.pages.shape[4]
    heads, rest = divmod(queries.shape[1], width)
    if rest or heads < 1 or heads % kv_heads:
        raise RequestError(f"queries: {queries.shape[1]} columns are not heads of {width} over {kv_heads} of keys")
    if not by_kernel("decode_attention", queries):
        return _decode_in_torch(queries, context, scale, sliding_window or NO_WINDOW, cap)
    from layercoop_fast.kernels.gpu.decode_attention import launch_decode

    out = queries.new_empty(queries.shape)
    launch_decode(queries, context, out, scale, sliding_window, cap)
    return out


def _decode_in_torch(queries: Tensor, context: PagedContext, scale: float, window: int, cap: float) -> Tensor:
    """All sequences at once, on copies of their contexts; nothing waits for the device, so that graphs can hold it."""
    pages, tables, lengths = context.pages, context.tables, context.lengths.long()[:, None]
    _, _, kv_heads, page, width = pages.shape
    wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
    known = pages[tables.clamp_min(0).long()].permute(2, 0, 3, 1, 4, 5)  # [2, S, kv_heads, M, PAGE, D]
    place = torch.arange(tables.shape[1] * page, device=queries.device)
    seen = (place < lengths) & (place >= lengths - window) & (tables[:, :1] >= 0)
    # What a page holds past its sequence's end may be anything.
    keys, values = torch.where(seen[:, None, :, None], known.flatten(3, 4).to(wide), 0.0)
    by_group = queries.reshape(len(queries), kv_heads, -1, width).to(wide)
    scores = scale * (by_group @ keys.transpose(-1, -2))
    if cap:
        scores = cap * torch.tanh(scores / cap)
    shares = scores.masked_fill(~seen[:, None, None], -math.inf).softmax(-1)
    mixed = torch.where(seen.any(1)[:, None, None, None], shares @ values, 0.0)
    return mixed.reshape(queries.shape).to(queries.dtype)


def _check(context: PagedContext, like: Tensor, scale: float, sliding_window: int, cap: float) -> None:
    pages, tables, lengths = context.pages, context.tables, context.lengths
    if pages.dim() != 5 or pages.shape[1] != 2 or not pages.is_contiguous() or 0 in pages.shape:
        raise RequestError(f"pages: expected contiguous [P, 2, kv_heads, PAGE, D], got {list(pages.shape)}")
    if pages.dtype != like.dtype or pages.device != like.device:
        raise RequestError(f"pages: expected {like.dtype} on {like.device}, got {pages.dtype} on {pages.device}")
    require_index(lengths, "lengths", len(lengths), like)
    if tables.dim() != 2 or tables.stride(1) != 1 or len(tables) != len(lengths) or tables.shape[1] < 1:
        raise RequestError(f"tables: expected [{len(lengths)}, M] with M of at least 1, got {list(tables.shape)}")
    if tables.dtype != torch.int32 or tables.device != like.device:
        raise RequestError(f"tables: expected int32 on {like.device}, got {tables.dtype} on {tables.device}")
    if (teams := context.teams) is not None:
        require_index(teams.shared, "teams.shared", len(lengths), like)
        members = teams.members
        if members.dim() != 2 or not members.is_contiguous() or members.shape[1] < 2:
            raise RequestError(f"teams.members: expected contiguous [T, R] with R of 2 or more, {list(members.shape)}")
        require_index(members.flatten(), "teams.members", members.numel(), like)
    if not (scale > 0 and math.isfinite(scale)):
        raise RequestError(f"scale: {scale} is not a positive number")
    if not 0 <= sliding_window <= NO_WINDOW:
        raise RequestError(
            f"sliding_window: {sliding_window} is not a number of tokens up to {NO_WINDOW}, or 0 for none"
        )
    if not 0 <= cap < math.inf:
        raise RequestError(f"cap: {cap} is not a positive number, or 0 for none")
