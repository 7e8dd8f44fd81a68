"""Rotary position embedding on the queries and keys of a joint projection, in place, with QK-norm before it.

The formula is `rotary_reference` of `kernels/reference/blocks.py`, with llama's norms of single heads. Products and sum
are rounded to the dtype one by one, as in transformers. Values behind the heads are neither read nor written.

Why not a library: Liger's kernel takes queries and keys as two tensors, so the joint projection would be copied first,
and has no QK-norm, which would be two more passes. Here a head is read once and written once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.reference.blocks import NO_NORMS, HeadNorms

CONFIGS = {"many": Config("many", {"HEADS": 16}, warps=2), "few": Config("few", {"HEADS": 4}, warps=1)}


@triton.jit
def _rotary(
    x, cos, sin, query_norm, key_norm, pages, page_of, slot_of, columns, tokens, query_heads, turning, heads, half,
    page_size, eps, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // tl.cdiv(heads, HEADS)).to(tl.int64)
    head = tl.program_id(0) % tl.cdiv(heads, HEADS) * HEADS + tl.arange(0, HEADS)
    place = tl.arange(0, HALF)
    inside = (head < heads)[:, None] & (place < half)[None, :]
    first = x + row * columns + head[:, None] * 2 * half + place[None, :]
    low = tl.load(first, mask=inside, other=0.0)
    high = tl.load(first + half, mask=inside, other=0.0)
    dtype = low.dtype
    low, high = low.to(tl.float32), high.to(tl.float32)
    if query_norm is not None or key_norm is not None:
        scale = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * half) + eps)[:, None]
        unit_low, unit_high = (low * scale).to(dtype).to(tl.float32), (high * scale).to(dtype).to(tl.float32)
        if query_norm is not None:
            is_query = (head < query_heads)[:, None]
            weight_low = tl.load(query_norm + place, mask=place < half, other=0.0).to(tl.float32)[None, :]
            weight_high = tl.load(query_norm + half + place, mask=place < half, other=0.0).to(tl.float32)[None, :]
            low = tl.where(is_query, (unit_low * weight_low).to(dtype).to(tl.float32), low)
            high = tl.where(is_query, (unit_high * weight_high).to(dtype).to(tl.float32), high)
        if key_norm is not None:
            is_key = ((head >= query_heads) & (head < turning))[:, None]
            weight_low = tl.load(key_norm + place, mask=place < half, other=0.0).to(tl.float32)[None, :]
            weight_high = tl.load(key_norm + half + place, mask=place < half, other=0.0).to(tl.float32)[None, :]
            low = tl.where(is_key, (unit_low * weight_low).to(dtype).to(tl.float32), low)
            high = tl.where(is_key, (unit_high * weight_high).to(dtype).to(tl.float32), high)
    turn = row % tokens * 2 * half + place
    cos_low = tl.load(cos + turn, mask=place < half, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + turn + half, mask=place < half, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + turn, mask=place < half, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + turn + half, mask=place < half, other=0.0).to(tl.float32)[None, :]
    turned_low = (low * cos_low).to(dtype).to(tl.float32) - (high * sin_low).to(dtype).to(tl.float32)
    turned_high = (high * cos_high).to(dtype).to(tl.float32) + (low * sin_high).to(dtype).to(tl.float32)
    turns = inside
    if pages is not None:  # value heads stand behind those that turn
        turns = inside & (head < turning)[:, None]
    tl.store(first, turned_low.to(dtype), mask=turns)
    tl.store(first + half, turned_high.to(dtype), mask=turns)
    if pages is not None:
        # [P, 2, kv_heads, PAGE, D]: key and value heads in this order, each PAGE · D numbers further.
        kept = head - query_heads
        page = tl.load(page_of + row).to(tl.int64) * (heads - query_heads) * page_size
        there = pages + page + kept[:, None] * page_size + tl.load(slot_of + row) * 2 * half + place[None, :]
        written = inside & (kept >= 0)[:, None]
        tl.store(there, tl.where(turns, turned_low.to(dtype), low.to(dtype)), mask=written)
        tl.store(there + half, tl.where(turns, turned_high.to(dtype), high.to(dtype)), mask=written)


def launch_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_heads: int,
    key_heads: int,
    norms: HeadNorms = NO_NORMS,
    into: PagePlaces | None = None,
    config: Config | None = None,
) -> None:
    """Rotate x [R, C] in place, and write its keys and values into pages; norms are llama's, of single heads."""
    rows, columns = x.shape
    tokens, width = cos.shape
    turning, half = query_heads + key_heads, width // 2
    heads = turning if into is None else turning + key_heads
    pages, page_of, slot_of = (None, None, None) if into is None else (into.pages, into.page, into.slot)
    page_size = 0 if into is None else into.pages.stride(2)
    config = config or chosen("rotary", (heads, width), CONFIGS, "many" if heads >= 16 else "few")
    launch(
        _rotary, (rows * blocks(heads, config.blocks["HEADS"]),), x, cos, sin, norms.query, norms.key, pages, page_of,
        slot_of, columns, tokens, query_heads, turning, heads, half, page_size, norms.eps, config=config,
        HALF=power_of_two(half),
    )  # fmt: skip
