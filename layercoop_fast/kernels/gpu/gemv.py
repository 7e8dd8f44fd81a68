"""A few rows times a matrix of 8- or 4-bit integers with a scale for every 32 columns, with the norm before it.

The formula is `quantised_linear_reference` of `kernels/reference/quantised.py`; `PackedWeight` says how weights are
packed. Sums are fp32.

One row is multiplied without matrix units, in fp32. Instructions bound it as much as bytes, and a weight takes some
four of them: a thread keeps a group of 32 columns of several rows from the load to the last sum, numbers stay where
they stand in their words, and a first kernel prepares the inputs for that, with the norm. 2 to 16 rows use matrix
units, with norm · x and the weights rounded to x's dtype; the norm's factor is one number a row, so it is applied after
the product, and its sum of squares is computed in the same pass.

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

from layercoop_fast.kernels.gpu.frame import Config, blocks, interpreted, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight

MOST_ROWS = 16
_ARRANGE = Config("arrange", warps=8)
CONFIGS = {
    "one": Config("one", {"OUTS": 8, "GROUPS": 128}, warps=4),
    "one_wide": Config("one_wide", {"OUTS": 16, "GROUPS": 128}, warps=4),
    "one_short": Config("one_short", {"OUTS": 4, "GROUPS": 64}, warps=2),
    "few": Config("few", {"OUTS": 32, "GROUPS": 4}, warps=4, stages=3),
}


@triton.jit
def _arrange(
    x, norm, arranged, columns, eps, BLOCK: tl.constexpr, NUMBERS: tl.constexpr, ROOM: tl.constexpr
):  # fmt: skip
    """Inputs as `_one_row` reads them, fp32 [33, ROOM] of each row: normed, one line for each number of a group.

    A number is not moved from where it stands in its word: the input of one at bits p is divided by 2^p. The last line
    holds what the inputs of a group are together: for 4 bits their sum, for 8 bits −128 times that.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    v = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    if norm is not None:
        v *= tl.rsqrt(tl.sum(v * v, axis=0) / columns + eps)
        v *= tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
    out = arranged + row * 33 * ROOM
    c = column % 32
    sums = tl.sum(v.reshape(BLOCK // 32, 32), axis=1)
    if NUMBERS == 8:
        number = c % 4 * 2 + c // 16
        line = c // 4 % 4 * 8 + number
        place = tl.where(number < 5, 4 * number, 4 * number - 12)
    else:
        line = c
        place = c % 2 * 8
        sums *= -128.0
    smaller = ((127 - place) << 23).to(tl.float32, bitcast=True)  # 2^-place
    tl.store(out + line * ROOM + column // 32, v * smaller, mask=inside)
    group = tl.arange(0, BLOCK // 32)
    tl.store(out + 32 * ROOM + group, sums, mask=group < columns // 32)


@triton.jit
def _product(word, inputs, ones, PLACE: tl.constexpr, BITS: tl.constexpr):
    """The integers at bits PLACE.. of words [O, W] times their inputs [W], in fp32.

    A masked word or-ed with the bits of 2^23 is that plus the integer times 2^PLACE: an and-or and an addition, where a
    conversion runs at a quarter of their rate.
    """
    MASK: tl.constexpr = ((1 << BITS) - 1) << PLACE
    number = ((word & MASK) | ones).to(tl.float32, bitcast=True) - 8388608.0
    return number * inputs[None, :]


@triton.jit
def _one_row(
    arranged, values, scale, minimum, out, outs, groups, OUTS: tl.constexpr, GROUPS: tl.constexpr, ROOM: tl.constexpr
):  # fmt: skip
    """Each thread keeps whole groups of some rows, from the load to the sum: nothing is exchanged in between.

    A word of 32 bits holds 8 numbers of 4 bits, columns c..c + 3 of a group in the low halves of its bytes and c + 16..
    in the high ones, or 4 numbers of 8 bits.
    """
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    line = tl.where(place < outs, place, 0).to(tl.int64)
    WORDS: tl.constexpr = 8 if minimum is None else 4  # of a group
    arranged += row * 33 * ROOM
    ones = 0x4B000000 + tl.program_id(2)  # 2^23 in fp32
    total = tl.zeros((OUTS, GROUPS), dtype=tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        inside = group < groups
        there = inside[None, :]
        # Said to be apart, or scales would be loaded in another layout than words, and exchanged.
        factor = tl.max_contiguous(line[:, None] * groups + group[None, :], (1, 1))
        inputs = arranged + group
        product = tl.zeros((OUTS, GROUPS), dtype=tl.float32)
        for w in tl.static_range(WORDS):
            packed = tl.load(values + factor * WORDS + w, mask=there, other=0)
            if minimum is not None:
                upper = packed >> 12  # the last three numbers are above a mantissa's bits
                for i in tl.static_range(8):
                    v = tl.load(inputs + (8 * w + i) * ROOM, mask=inside, other=0.0)
                    product += _product(packed if i < 5 else upper, v, ones, 4 * i if i < 5 else 4 * i - 12, 4)
            else:
                lifted = packed ^ -2139062144  # 0x80808080: q + 128
                upper = lifted >> 16
                for i in tl.static_range(4):
                    v = tl.load(inputs + (4 * w + i) * ROOM, mask=inside, other=0.0)
                    product += _product(lifted if i < 2 else upper, v, ones, 8 * (i % 2), 8)
        sums = tl.load(inputs + 32 * ROOM, mask=inside, other=0.0)[None, :]
        if minimum is not None:
            total += tl.load(minimum + factor, mask=there, other=0.0).to(tl.float32) * sums
        else:
            product += sums
        total += product * tl.load(scale + factor, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * outs + place, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=place < outs)


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
            groups = columns // GROUP
            room = power_of_two(groups)  # a constant of the kernels: inputs then lie at constant offsets
            arranged = torch.empty(rows, GROUP + 1, room, dtype=torch.float32, device=x.device)
            launch(
                _arrange, (rows,), some, norm, arranged, columns, eps, config=_ARRANGE, BLOCK=power_of_two(columns),
                NUMBERS=4 if weight.minimum is None else 8, ROOM=room,
            )  # fmt: skip
            launch(
                _one_row, (tiles, rows), arranged, weight.values.view(torch.int32), weight.scale, weight.minimum,
                filled, outs, groups, config=fitting, ROOM=room,
            )  # fmt: skip
