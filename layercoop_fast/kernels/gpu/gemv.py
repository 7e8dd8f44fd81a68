"""A few rows times a matrix of 8- or 4-bit integers with a scale for every 32 columns, with the norm before it.

The formula is `quantised_linear_reference` of `kernels/reference/quantised.py`; `PackedWeight` says how weights are
packed. Sums are fp32. The norm's factor is one number a row, so it is applied after the product, and its sum of squares
is computed in the same pass. One row is multiplied without matrix units, in fp32; 2 to 16 rows use them, with norm · x
and the weights rounded to x's dtype.

Why not a library: decoding is bound by the bytes of the weights. cuBLAS has no product with groups of 4-bit columns.
Kernels that have one (torch's _weight_int4pack_mm, Marlin, ExLlama) need formats of their own, shuffled for matrix
units, with bf16 scales or integer zero points, and none includes the norm. This format is that of GGUF's Q8_0 and Q4_1
and of the native executor on the CPU: both multiply by exactly the same numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, interpreted, launch
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight

MOST_ROWS = 16
CONFIGS = {
    "one": Config("one", {"OUTS": 8, "GROUPS": 16}, warps=4),
    "one_wide": Config("one_wide", {"OUTS": 16, "GROUPS": 32}, warps=8),
    "few": Config("few", {"OUTS": 32, "GROUPS": 4}, warps=4, stages=3),
}


@triton.jit
def _one_row(
    x, norm, values, scale, minimum, out, outs, groups, eps, OUTS: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    line = tl.where(place < outs, place, 0).to(tl.int64)
    half = tl.arange(0, 16)
    total = tl.zeros((OUTS, GROUPS), dtype=tl.float32)
    squares = tl.zeros((GROUPS,), dtype=tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        inside = group < groups
        column = group[:, None] * 32 + half[None, :]
        low = tl.load(x + row * groups * 32 + column, mask=inside[:, None], other=0.0).to(tl.float32)
        high = tl.load(x + row * groups * 32 + column + 16, mask=inside[:, None], other=0.0).to(tl.float32)
        if norm is not None:
            squares += tl.sum(low * low + high * high, axis=1)
            low *= tl.load(norm + column, mask=inside[:, None], other=0.0).to(tl.float32)
            high *= tl.load(norm + column + 16, mask=inside[:, None], other=0.0).to(tl.float32)
        factor = line[:, None] * groups + group[None, :]
        factors = tl.load(scale + factor, mask=inside[None, :], other=0.0).to(tl.float32)
        if minimum is not None:
            at = (line[:, None] * groups + group[None, :])[:, :, None] * 16 + half[None, None, :]
            packed = tl.load(values + at, mask=inside[None, :, None], other=0)
            products = (packed & 15).to(tl.float32) * low[None, :, :] + (packed >> 4).to(tl.float32) * high[None, :, :]
            least = tl.load(minimum + factor, mask=inside[None, :], other=0.0).to(tl.float32)
            total += tl.sum(products, axis=2) * factors + least * tl.sum(low + high, axis=1)[None, :]
        else:
            at = (line[:, None] * groups + group[None, :])[:, :, None] * 32 + half[None, None, :]
            first = tl.load(values + at, mask=inside[None, :, None], other=0).to(tl.float32)
            second = tl.load(values + at + 16, mask=inside[None, :, None], other=0).to(tl.float32)
            total += tl.sum(first * low[None, :, :] + second * high[None, :, :], axis=2) * factors
    result = tl.sum(total, axis=1)
    if norm is not None:
        result *= tl.rsqrt(tl.sum(squares, axis=0) / (groups * 32) + eps)
    tl.store(out + row * outs + place, result.to(out.dtype.element_ty), mask=place < outs)


@triton.jit
def _few_rows(
    x, norm, values, scale, minimum, out, rows, outs, groups, eps,
    OUTS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    place = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    line = tl.where(place < outs, place, 0).to(tl.int64)
    half = tl.arange(0, GROUPS * 16)  # the first 16 columns of every group; the last 16 are loaded next to them
    dtype = x.dtype.element_ty
    total = tl.zeros((ROWS, OUTS), dtype=tl.float32)
    squares = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + half // 16
        column = group * 32 + half % 16
        there = (row < rows)[:, None] & (group < groups)[None, :]
        low = tl.load(x + row[:, None] * groups * 32 + column[None, :], mask=there, other=0.0)
        high = tl.load(x + row[:, None] * groups * 32 + column[None, :] + 16, mask=there, other=0.0)
        if norm is not None:
            wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
            squares += tl.sum(wide_low * wide_low + wide_high * wide_high, axis=1)
            weight_low = tl.load(norm + column, mask=group < groups, other=0.0).to(tl.float32)[None, :]
            weight_high = tl.load(norm + column + 16, mask=group < groups, other=0.0).to(tl.float32)[None, :]
            low, high = (wide_low * weight_low).to(dtype), (wide_high * weight_high).to(dtype)
        block = start + tl.arange(0, GROUPS)
        factor = line[:, None] * groups + block[None, :]
        inside = (block < groups)[None, :]
        spread = tl.load(scale + factor, mask=inside, other=0.0).to(tl.float32)[:, :, None]
        if minimum is not None:
            at = (line * groups)[:, None] * 16 + (start * 16 + half)[None, :]
            packed = tl.load(values + at, mask=(group < groups)[None, :], other=0)
            least = tl.load(minimum + factor, mask=inside, other=0.0).to(tl.float32)[:, :, None]
            first = (packed & 15).to(tl.float32).reshape(OUTS, GROUPS, 16) * spread + least
            second = (packed >> 4).to(tl.float32).reshape(OUTS, GROUPS, 16) * spread + least
        else:
            at = (line * groups)[:, None] * 32 + column[None, :]
            first = tl.load(values + at, mask=(group < groups)[None, :], other=0).to(tl.float32)
            second = tl.load(values + at + 16, mask=(group < groups)[None, :], other=0).to(tl.float32)
            first = first.reshape(OUTS, GROUPS, 16) * spread
            second = second.reshape(OUTS, GROUPS, 16) * spread
        first = tl.trans(first.reshape(OUTS, GROUPS * 16).to(dtype))
        second = tl.trans(second.reshape(OUTS, GROUPS * 16).to(dtype))
        if WIDEN:  # Triton's interpreter has no products of bf16
            low, high, first, second = [each.to(tl.float32) for each in (low, high, first, second)]
        total = tl.dot(low, first, total, input_precision="ieee")
        total = tl.dot(high, second, total, input_precision="ieee")
    if norm is not None:
        total *= tl.rsqrt(squares / (groups * 32) + eps)[:, None]
    where = row[:, None] * outs + place[None, :]
    tl.store(out + where, total.to(dtype), mask=(row < rows)[:, None] & (place < outs)[None, :])


def launch_quantised(
    x: Tensor,
    weight: PackedWeight,
    out: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    config: Config | None = None,
) -> None:
    """Fill out [R, O] from x [R, K]; each launch takes up to 16 rows."""
    columns, outs = x.shape[1], len(weight.values)
    for some, filled in zip(torch.split(x, MOST_ROWS), torch.split(out, MOST_ROWS), strict=True):
        rows = len(some)
        fitting = config or chosen("gemv", (outs, columns, rows > 1), CONFIGS, "one" if rows == 1 else "few")
        tiles = blocks(outs, fitting.blocks["OUTS"])
        given = (some, norm, weight.values, weight.scale, weight.minimum, filled)
        if fitting.name == "few":
            launch(
                _few_rows, (tiles if rows else 0,), *given, rows, outs, columns // GROUP, eps, config=fitting,
                ROWS=MOST_ROWS, WIDEN=interpreted() and x.dtype == torch.bfloat16,
            )  # fmt: skip
        else:
            launch(_one_row, (tiles, rows), *given, outs, columns // GROUP, eps, config=fitting)
