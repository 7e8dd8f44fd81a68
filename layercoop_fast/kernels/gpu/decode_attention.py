"""Attention of one new token of each sequence over keys and values in pages, each sequence split among programs.

The formula is `decode_attention_reference` of `kernels/reference/attention.py`. The new token's key and value lie in
its page already. A sequence whose mask removes the block has no page there and gets 0 at the cost of one load: so
requests of different masks go through one block, and one captured graph, together.

One token has little to compute and all keys and values to read, and a few sequences have fewer (sequence, head) pairs
than a chip has processors. So a sequence is split into `splits` parts. One program reads a part for all query heads
that share a key head, and leaves its mixture and the logarithm of its sum; a second kernel combines the parts.

Why not a library: torch's scaled_dot_product_attention splits a sequence in the same way, but takes no pages; about
libraries that do see `paged_attention.py`. None leaves out a sequence whose table is empty.

Source: Dao et al., Flash-Decoding (pytorch.org/blog/flash-decoding, 2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import PROGRAMS, Config, interpreted, launch, power_of_two
from layercoop_fast.kernels.gpu.paged_attention import attend, exponents, tile
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.reference.attention import NO_WINDOW, PagedContext

CONFIGS = {
    "split": Config("split", {"BLOCK_N": 64}, warps=4, stages=3),
    "wide": Config("wide", {"BLOCK_N": 32}, warps=4, stages=2),  # heads of more than 128
    "full": Config("full", {"BLOCK_N": 16}, warps=8, stages=2),  # fp32, which has no matrix units
    "tiny": Config("tiny", {"BLOCK_N": 16}, warps=1, stages=1),
}
_COMBINE = Config("combine", warps=2, stages=1)
# A part of fewer tokens costs more to combine than it saves.
_LEAST_TOKENS = 128


@triton.jit
def _split(
    queries, pages, tables, lengths, mixtures, sums, out, scale, cap, window, query_row, table_row, page_size, splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, CAPPED: tl.constexpr,
    WIDEN: tl.constexpr, WHOLE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    group = tl.program_id(1)
    split = tl.program_id(2)
    SHARING: tl.constexpr = HEADS // KV_HEADS
    h = tl.arange(0, BLOCK_H)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = (h < SHARING)[:, None] & (d < WIDTH)[None, :]
    length = tl.load(lengths + sequence)
    length = tl.where(tl.load(tables + sequence * table_row) < 0, 0, length)
    lowest = tl.maximum(length - window, 0)
    part = tl.cdiv(tl.cdiv(length - lowest, splits), BLOCK_N) * BLOCK_N
    begin = lowest + split * part
    end = tl.minimum(begin + part, length)
    row = queries + sequence.to(tl.int64) * query_row + (group * SHARING + h)[:, None] * WIDTH + d[None, :]
    q = tl.load(row, mask=inside, other=0.0)
    top = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    mixed = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for n0 in range(begin, end, BLOCK_N):
        at = n0 + n
        k, v = tile(pages, tables + sequence * table_row, at, at < end, group, d, page_size, KV_HEADS, WIDTH, PAGE)
        top, total, mixed = attend(q, k, v, (at < end)[None, :], top, total, mixed, scale, cap, CAPPED, WIDEN)
    filled = total > 0
    divisor = tl.where(filled, total, 1.0)
    if WHOLE:
        line = (sequence * HEADS + group * SHARING + h)[:, None].to(tl.int64) * WIDTH + d[None, :]
        tl.store(out + line, (mixed / divisor[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        result = (sequence * HEADS + group * SHARING + h) * splits + split
        tl.store(sums + result, tl.where(filled, top + tl.log2(divisor), -float("inf")), mask=h < SHARING)
        tl.store(mixtures + result[:, None].to(tl.int64) * WIDTH + d[None, :], mixed / divisor[:, None], mask=inside)


@triton.jit
def _combine(mixtures, sums, out, splits, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    logarithms = tl.load(sums + row * splits + s, mask=s < splits, other=-float("inf"))
    top = tl.max(logarithms, 0)
    weights = tl.exp2(logarithms - tl.where(top == -float("inf"), 0.0, top))
    inside = (s < splits)[:, None] & (d < WIDTH)[None, :]
    parts = tl.load(mixtures + (row * splits + s)[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
    total = tl.sum(weights, 0)
    result = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * WIDTH + d, result.to(out.dtype.element_ty), mask=d < WIDTH)


def launch_decode(
    queries: Tensor,
    context: PagedContext,
    out: Tensor,
    scale: float,
    sliding_window: int = 0,
    cap: float = 0.0,
    *,
    splits: int | None = None,
    config: Config | None = None,
) -> None:
    """Fill out [S, heads·D] from queries [S, heads·D]."""
    pages, tables = context.pages, context.tables
    kv_heads, page, width = pages.shape[2:]
    sequences, heads, window = len(out), out.shape[1] // width, sliding_window or NO_WINDOW
    splits = splits or choose_splits(sequences * kv_heads, min(tables.shape[1] * page, window))
    config = config or choose_config(width, queries.dtype)
    whole = splits == 1
    mixtures = sums = None
    if not whole:
        mixtures = torch.empty(sequences * heads, splits, width, dtype=torch.float32, device=out.device)
        sums = torch.empty(sequences * heads, splits, dtype=torch.float32, device=out.device)
    block_d = max(16, power_of_two(width))
    launch(
        _split, (sequences, kv_heads, splits), queries, pages, tables, context.lengths, mixtures, sums,
        out if whole else None, *exponents(scale, cap), window, queries.stride(0), tables.stride(0), pages.stride(0),
        splits, config=config, HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, PAGE=page, CAPPED=cap > 0,
        WIDEN=interpreted() and queries.dtype == torch.bfloat16, WHOLE=whole,
        BLOCK_H=max(16, power_of_two(heads // kv_heads)), BLOCK_D=block_d,
    )  # fmt: skip
    if whole:
        return
    launch(
        _combine, (sequences * heads,), mixtures, sums, out, splits, config=_COMBINE, WIDTH=width,
        BLOCK_S=power_of_two(splits), BLOCK_D=block_d,
    )  # fmt: skip


def choose_splits(programs: int, tokens: int) -> int:
    """The number of parts of a sequence, a power of two, for the number of programs without a split and of tokens.

    It depends only on what the host knows (the room in the tables), so that nothing waits for the device.
    """
    wanted = min(PROGRAMS // max(programs, 1), tokens // _LEAST_TOKENS)
    return 1 << max(wanted.bit_length() - 1, 0)


def choose_config(width: int, dtype: torch.dtype) -> Config:
    """The configuration by what fits into a chip's shared memory."""
    if interpreted():
        return CONFIGS["tiny"]
    default = "full" if dtype == torch.float32 else "wide" if width > 128 else "split"
    return chosen("decode_attention", (width, dtype.itemsize), CONFIGS, default)
