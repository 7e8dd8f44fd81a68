"""Causal attention of sequences of any lengths over their own tokens and a context whose keys and values lie in pages.

The formula is `paged_attention_reference` of `kernels/reference/attention.py`. A context is what a mask's kept prefix
and the first tokens of a text have computed: its pages are shared by every mask and text that begin so, and only the
rest is computed. So this is the prefill of a prompt whose beginning is known, of options behind one context, and of the
tokens that a draft proposes.

Why not a library: torch's scaled_dot_product_attention takes neither pages nor a soft cap; without context and cap the
engine uses it. FlashAttention 2, and with it torch's varlen_attn (which takes pages since 2.13, no soft cap), needs
pages of 256 tokens; here a page holds 16, since pages are shared where masks and texts begin alike. flex_attention
needs a mask of blocks made from the tables before each call. FlashInfer has all of this, in wheels of its own for
NVIDIA's chips.

Source: Dao, FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, interpreted, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.reference.attention import NO_WINDOW, PagedContext

LOG2E = 1.4426950408889634

CONFIGS = {
    "long": Config("long", {"BLOCK_M": 128, "BLOCK_N": 32}, warps=8, stages=2),
    "large": Config("large", {"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=2),  # spills on sm_80 and gfx942
    "short": Config("short", {"BLOCK_M": 16, "BLOCK_N": 64}, warps=4, stages=2),
    "wide": Config("wide", {"BLOCK_M": 64, "BLOCK_N": 32}, warps=8, stages=2),  # heads of more than 128
    "full": Config("full", {"BLOCK_M": 32, "BLOCK_N": 16}, warps=8, stages=2),  # fp32, which has no matrix units
    "tiny": Config("tiny", {"BLOCK_M": 16, "BLOCK_N": 16}, warps=1, stages=1),
}


@triton.jit
def capped(scores, scale, cap, CAPPED: tl.constexpr):
    """Products of queries and keys as exponents of 2: scale · x, or cap · tanh(scale · x), both times log2 e."""
    scores = scores * scale
    if CAPPED:
        # tanh |x| = (1 − e^(−2|x|)) / (1 + e^(−2|x|)), whose exponential cannot overflow.
        small = tl.exp2(-2.8853900817779268 * tl.abs(scores))
        size = cap * (1.0 - small) / (1.0 + small)
        scores = tl.where(scores < 0, -size, size)
    return scores


@triton.jit
def tile(
    pages, table, at, known, group, d, page_size, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr
):  # fmt: skip
    """Keys and values of a sequence's tokens `at`, from the pages in its table; 0 for unknown tokens."""
    page = tl.load(table + at // PAGE, mask=known, other=0).to(tl.int64)
    place = pages + page * page_size + group * (PAGE * WIDTH) + at % PAGE * WIDTH
    here = known[:, None] & (d < WIDTH)[None, :]
    k = tl.load(place[:, None] + d[None, :], mask=here, other=0.0)
    v = tl.load(place[:, None] + KV_HEADS * PAGE * WIDTH + d[None, :], mask=here, other=0.0)
    return k, v


@triton.jit
def attend(q, k, v, seen, top, total, mixed, scale, cap, CAPPED: tl.constexpr, WIDEN: tl.constexpr):
    """Add a tile of keys and values to the running maximum, sum of exponentials and mixture of each query."""
    if WIDEN:  # Triton's interpreter has no products of bf16
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = capped(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, cap, CAPPED)
    scores = tl.where(seen, scores, -float("inf"))
    highest = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(highest == -float("inf"), 0.0, highest)  # nothing seen so far: no difference of infinities
    weights = tl.exp2(scores - base[:, None])
    kept = tl.exp2(top - base)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * kept[:, None], input_precision="ieee")
    return highest, total * kept + tl.sum(weights, 1), mixed


@triton.jit
def _paged(
    qkv, starts, pages, tables, lengths, out, scale, cap, window, qkv_row, table_row, page_size,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, CAPPED: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(2)
    head = tl.program_id(1)
    first = tl.load(starts + sequence)
    new = tl.load(starts + sequence + 1) - first
    # The last tokens come first: they have the most to attend to.
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if m0 >= new:
        return
    context = tl.load(lengths + sequence)
    group = head // (HEADS // KV_HEADS)
    own = qkv + first.to(tl.int64) * qkv_row
    m = m0 + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = (m < new)[:, None] & (d < WIDTH)[None, :]
    q = tl.load(own + m[:, None].to(tl.int64) * qkv_row + head * WIDTH + d[None, :], mask=inside, other=0.0)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n0 in range(tl.maximum(context + m0 - window + 1, 0) // BLOCK_N * BLOCK_N, context, BLOCK_N):
        at = n0 + n
        k, v = tile(pages, tables + sequence * table_row, at, at < context, group, d, page_size, KV_HEADS, WIDTH, PAGE)
        seen = (at < context)[None, :] & (at[None, :] > (context + m)[:, None] - window)
        top, total, mixed = attend(q, k, v, seen, top, total, mixed, scale, cap, CAPPED, WIDEN)
    for n0 in range(tl.maximum(m0 - window + 1, 0) // BLOCK_N * BLOCK_N, tl.minimum(m0 + BLOCK_M, new), BLOCK_N):
        at = n0 + n
        here = (at < new)[:, None] & (d < WIDTH)[None, :]
        token = own + at[:, None].to(tl.int64) * qkv_row + (HEADS + group) * WIDTH + d[None, :]
        k = tl.load(token, mask=here, other=0.0)
        v = tl.load(token + KV_HEADS * WIDTH, mask=here, other=0.0)
        seen = (at[None, :] <= m[:, None]) & (at[None, :] > m[:, None] - window)
        top, total, mixed = attend(q, k, v, seen, top, total, mixed, scale, cap, CAPPED, WIDEN)
    row = out + (first + m)[:, None].to(tl.int64) * (HEADS * WIDTH) + head * WIDTH + d[None, :]
    tl.store(row, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


def launch_paged(
    qkv: Tensor,
    starts: Tensor,
    context: PagedContext,
    out: Tensor,
    longest: int,
    scale: float,
    sliding_window: int = 0,
    cap: float = 0.0,
    *,
    config: Config | None = None,
) -> None:
    """Fill out [N, heads·D] from qkv [N, (heads + 2·kv_heads)·D]; `longest` bounds the own tokens of a sequence."""
    pages, tables = context.pages, context.tables
    kv_heads, page, width = pages.shape[2:]
    heads = out.shape[1] // width
    config = config or choose_config(longest, width, qkv.dtype)
    grid = (blocks(longest, config.blocks["BLOCK_M"]), heads, len(context.lengths))
    factors, window = exponents(scale, cap), sliding_window or NO_WINDOW
    launch(
        _paged, grid, qkv, starts, pages, tables, context.lengths, out, *factors, window, qkv.stride(0),
        tables.stride(0), pages.stride(0), config=config, HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, PAGE=page,
        CAPPED=cap > 0, WIDEN=interpreted() and qkv.dtype == torch.bfloat16, BLOCK_D=max(16, power_of_two(width)),
    )  # fmt: skip


def choose_config(longest: int, width: int, dtype: torch.dtype) -> Config:
    """The configuration by the number of rows of a tile and by what fits into a chip's shared memory."""
    if interpreted():
        return CONFIGS["tiny"]
    few = longest <= CONFIGS["short"].blocks["BLOCK_M"]
    default = "full" if dtype == torch.float32 else "wide" if width > 128 else "short" if few else "long"
    return chosen("paged_attention", (width, dtype.itemsize, few), CONFIGS, default)


def exponents(scale: float, cap: float) -> tuple[float, float]:
    """The factors of `capped`: e^x = 2^(x · log2 e)."""
    return (scale / cap, cap * LOG2E) if cap > 0 else (scale * LOG2E, 0.0)
