"""Attention of one new token of each sequence over keys and values in pages, each sequence split among programs.

The formula is `decode_attention_reference` of `kernels/reference/attention.py`. The new token's key and value lie in
its page already. A sequence whose mask removes the block has no page there and gets 0 at the cost of one load: so
requests of different masks go through one block, and one captured graph, together.

One token has little to compute and all keys and values to read, and a few sequences have fewer (sequence, head) pairs
than a chip has processors. So a sequence is split into `splits` parts. One program reads a part for all query heads
that share a key head, and leaves its mixture and the logarithm of its sum; a second kernel combines the parts.

Where sequences begin in the same pages (one prompt under many masks, several answers to one prompt, a draft's
proposals), a launch for their teams reads the shared tokens once for the queries of all members, and another each
sequence's own tokens behind them; the parts of both are combined together.

Why not a library: torch's scaled_dot_product_attention splits a sequence in the same way, but takes no pages; about
libraries that do see `paged_attention.py`. None leaves out a sequence whose table is empty.

Sources: Dao et al., Flash-Decoding (pytorch.org/blog/flash-decoding, 2023); of the teams: Juravsky et al., Hydragen
(arXiv 2402.05099).
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
_COMBINE_MANY = Config("combine many", warps=8, stages=1)
# Numbers that `_COMBINE` has registers for.
_COMBINED = 8192
# A part of fewer tokens costs more to combine than it saves.
_LEAST_TOKENS = 128


@triton.jit
def _split(
    queries, pages, tables, lengths, members, shared, mixtures, sums, out, scale, cap, window, query_row, table_row,
    page_size, splits, first_split, all_splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, CAPPED: tl.constexpr,
    WIDEN: tl.constexpr, WHOLE: tl.constexpr, TEAM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    split = tl.program_id(2)
    SHARING: tl.constexpr = HEADS // KV_HEADS
    h = tl.arange(0, BLOCK_H)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    if TEAM > 1:  # the tokens that a team has in common, for all its members
        leader = tl.load(members + tl.program_id(0) * TEAM)
        rows = tl.load(members + tl.program_id(0) * TEAM + h // SHARING, mask=h < TEAM * SHARING, other=-1)
        there = rows >= 0
        rows = tl.maximum(rows, 0)
        sequence = tl.maximum(leader, 0)
        length = tl.where(leader < 0, 0, tl.load(shared + sequence))
        lowest = 0
    else:
        sequence = tl.program_id(0)
        rows = sequence + h * 0
        there = h < SHARING
        length = tl.load(lengths + sequence)
        length = tl.where(tl.load(tables + sequence * table_row) < 0, 0, length)
        lowest = tl.maximum(length - window, 0)
        if shared is not None:
            lowest = tl.minimum(tl.load(shared + sequence), length)
    head = group * SHARING + h % SHARING
    inside = there[:, None] & (d < WIDTH)[None, :]
    part = tl.cdiv(tl.cdiv(length - lowest, splits), BLOCK_N) * BLOCK_N
    begin = lowest + split * part
    end = tl.minimum(begin + part, length)
    row = queries + rows[:, None].to(tl.int64) * query_row + head[:, None] * WIDTH + d[None, :]
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
        line = (rows * HEADS + head)[:, None].to(tl.int64) * WIDTH + d[None, :]
        tl.store(out + line, (mixed / divisor[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        result = (rows * HEADS + head) * all_splits + first_split + split
        tl.store(sums + result, tl.where(filled, top + tl.log2(divisor), -float("inf")), mask=there)
        tl.store(mixtures + result[:, None].to(tl.int64) * WIDTH + d[None, :], mixed / divisor[:, None], mask=inside)


@triton.jit
def _combine(
    mixtures, sums, shared, out, splits, parts,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    count = parts
    if shared is not None:  # for a sequence without a team nothing is there behind its own parts
        count = tl.where(tl.load(shared + row // HEADS) > 0, parts, splits)
    there = s < count
    logarithms = tl.load(sums + row * parts + s, mask=there, other=-float("inf"))
    top = tl.max(logarithms, 0)
    weights = tl.exp2(logarithms - tl.where(top == -float("inf"), 0.0, top))
    inside = there[:, None] & (d < WIDTH)[None, :]
    mixed = tl.load(mixtures + (row * parts + s)[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
    total = tl.sum(weights, 0)
    result = tl.sum(mixed * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
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
    """Fill out [S, heads·D] from queries [S, heads·D]. Teams are used where there is no sliding window."""
    pages, tables = context.pages, context.tables
    kv_heads, page, width = pages.shape[2:]
    sequences, heads, window = len(out), out.shape[1] // width, sliding_window or NO_WINDOW
    room = min(tables.shape[1] * page, window)
    splits = splits or choose_splits(sequences * kv_heads, room)
    config = config or choose_config(width, queries.dtype)
    teams = None if sliding_window else context.teams
    together = 0 if teams is None else choose_splits(len(teams.members) * kv_heads, room)
    parts = splits + together
    whole = parts == 1
    mixtures = sums = None
    if not whole:
        mixtures = torch.empty(sequences * heads, parts, width, dtype=torch.float32, device=out.device)
        sums = torch.empty(sequences * heads, parts, dtype=torch.float32, device=out.device)
    block_d = max(16, power_of_two(width))

    def split(programs: int, count: int, first: int, team: int) -> None:
        launch(
            _split, (programs, kv_heads, count), queries, pages, tables, context.lengths,
            None if teams is None else teams.members, None if teams is None else teams.shared, mixtures, sums,
            out if whole else None, *exponents(scale, cap), window, queries.stride(0), tables.stride(0),
            pages.stride(0), count, first, parts, config=config, HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, PAGE=page,
            CAPPED=cap > 0, WIDEN=interpreted() and queries.dtype == torch.bfloat16, WHOLE=whole, TEAM=team,
            BLOCK_H=max(16, power_of_two(team * (heads // kv_heads))), BLOCK_D=block_d,
        )  # fmt: skip

    split(sequences, splits, 0, 1)
    if teams is not None:
        split(len(teams.members), together, splits, teams.members.shape[1])
    if whole:
        return
    block_s = power_of_two(parts)
    launch(
        _combine, (sequences * heads,), mixtures, sums, None if teams is None else teams.shared, out, splits, parts,
        config=_COMBINE if block_s * block_d <= _COMBINED else _COMBINE_MANY, HEADS=heads, WIDTH=width, BLOCK_S=block_s,
        BLOCK_D=block_d,
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
