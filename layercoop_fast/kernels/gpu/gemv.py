"""A few rows times a matrix of 8- or 4-bit integers with a scale for every 32 columns, with the norm before it.

The formula is `quantised_linear_reference` of `kernels/reference/quantised.py`; `PackedWeight` says how weights are
packed. Sums are fp32.

One row is multiplied without matrix units, in fp32. Instructions bound it as much as bytes, and a weight takes some
four of them: a thread keeps a group of 32 columns of several rows from the load to the last sum, numbers stay where
they stand in their words, and a first kernel prepares the inputs for that, with the norm. 2 to 16 rows use matrix
units, with norm · x and the weights rounded to x's dtype; the norm's factor is one number a row, so it is applied after
the product, and its sum of squares is computed in the same pass. Where outputs are too few to fill a chip, columns are
split among programs, and a last kernel adds the parts.

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

from layercoop_fast.kernels.gpu.frame import PROGRAMS, Config, blocks, interpreted, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight

MOST_ROWS = 16
_ARRANGE = Config("arrange", warps=8)
_ADD = Config("add", {"BLOCK": 256}, warps=1)
# Groups of columns of which a part has no fewer.
_LEAST_GROUPS = 16
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
    """The integers at bits PLACE.. of words [O, G] times their inputs [1, G], in fp32.

    A masked word or-ed with the bits of 2^23 is that plus the integer times 2^PLACE: an and-or and an addition, where a
    conversion runs at a quarter of their rate.
    """
    MASK: tl.constexpr = ((1 << BITS) - 1) << PLACE
    number = ((word & MASK) | ones).to(tl.float32, bitcast=True) - 8388608.0
    return number * inputs


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
    # 2^23 in fp32. The compiler must not know it, or it would be loaded anew for each number.
    ones = 0x4B000000 + tl.program_id(2)
    total = tl.zeros((OUTS, GROUPS), dtype=tl.float32)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        there = (group < groups)[None, :]
        # Said to be apart, or scales would be loaded in another layout than words, and exchanged.
        factor = tl.max_contiguous(line[:, None] * groups + group[None, :], (1, 1))
        inputs = arranged + group[None, :]  # of two dimensions as the words are, or they would be exchanged too
        product = tl.zeros((OUTS, GROUPS), dtype=tl.float32)
        for w in tl.static_range(WORDS):
            packed = tl.load(values + factor * WORDS + w, mask=there, other=0)
            if minimum is not None:
                upper = packed >> 12  # the last three numbers are above a mantissa's bits
                for i in tl.static_range(8):
                    v = tl.load(inputs + (8 * w + i) * ROOM, mask=there, other=0.0)
                    product += _product(packed if i < 5 else upper, v, ones, 4 * i if i < 5 else 4 * i - 12, 4)
            else:
                lifted = packed ^ -2139062144  # 0x80808080: q + 128
                upper = lifted >> 16
                for i in tl.static_range(4):
                    v = tl.load(inputs + (4 * w + i) * ROOM, mask=there, other=0.0)
                    product += _product(lifted if i < 2 else upper, v, ones, 8 * (i % 2), 8)
        sums = tl.load(inputs + 32 * ROOM, mask=there, other=0.0)
        if minimum is not None:
            total += tl.load(minimum + factor, mask=there, other=0.0).to(tl.float32) * sums
        else:
            product += sums
        total += product * tl.load(scale + factor, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * outs + place, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=place < outs)


@triton.jit
def _few_rows(
    x, norm, values, scale, minimum, out, parts, sums, rows, outs, groups, share, eps,
    OUTS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    place = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    line = tl.where(place < outs, place, 0).to(tl.int64)
    half = tl.arange(0, GROUPS * 16)  # the first 16 columns of every group; the last 16 are loaded next to them
    dtype = x.dtype.element_ty
    total = tl.zeros((ROWS, OUTS), dtype=tl.float32)
    squares = tl.zeros((ROWS,), dtype=tl.float32)
    begin = tl.program_id(1) * share  # where the columns are split, into parts of so many groups
    for start in range(begin, tl.minimum(begin + share, groups), GROUPS):
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
    where = row[:, None] * outs + place[None, :]
    inside_out = (row < rows)[:, None] & (place < outs)[None, :]
    if parts is not None:
        tl.store(parts + tl.program_id(1) * rows * outs + where, total, mask=inside_out)
        if norm is not None:  # every tile of a part stores the same
            tl.store(sums + tl.program_id(1) * rows + row, squares, mask=row < rows)
    else:
        if norm is not None:
            total *= tl.rsqrt(squares / (groups * 32) + eps)[:, None]
        tl.store(out + where, total.to(dtype), mask=inside_out)


@triton.jit
def _add_parts(
    parts, sums, out, rows, outs, columns, splits, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """The parts of a row's products, and with a norm its factor from their sums of squares."""
    row = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < outs
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    squares = 0.0
    for part in range(splits):
        total += tl.load(parts + (part * rows + row) * outs + place, mask=inside, other=0.0)
        if sums is not None:
            squares += tl.load(sums + part * rows + row)
    if sums is not None:
        total *= tl.rsqrt(squares / columns + eps)
    tl.store(out + row * outs + place, total.to(out.dtype.element_ty), mask=inside)


def launch_quantised(
    x: Tensor,
    weight: PackedWeight,
    out: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    splits: int | None = None,
    config: Config | None = None,
) -> None:
    """Fill out [R, O] from x [R, K]; each launch takes up to 16 rows, and splits the columns of several into parts."""
    for some, filled in zip(torch.split(x, MOST_ROWS), torch.split(out, MOST_ROWS), strict=True):
        rows, key = len(some), (len(weight.values), x.shape[1], len(some) > 1)
        fitting = config or chosen("gemv", key, CONFIGS, "one" if rows == 1 else "few")
        if fitting.name == "few":
            _launch_few(some, weight, filled, norm, eps, splits, fitting)
        else:
            _launch_one(some, weight, filled, norm, eps, fitting)


def _launch_one(x: Tensor, weight: PackedWeight, out: Tensor, norm: Tensor | None, eps: float, config: Config) -> None:
    (rows, columns), outs = x.shape, out.shape[1]
    groups = columns // GROUP
    room = power_of_two(groups)  # a constant of the kernels: inputs then lie at constant offsets
    arranged = torch.empty(rows, GROUP + 1, room, dtype=torch.float32, device=x.device)
    launch(
        _arrange, (rows,), x, norm, arranged, columns, eps, config=_ARRANGE, BLOCK=power_of_two(columns),
        NUMBERS=4 if weight.minimum is None else 8, ROOM=room,
    )  # fmt: skip
    launch(
        _one_row, (blocks(outs, config.blocks["OUTS"]), rows), arranged, weight.values.view(torch.int32), weight.scale,
        weight.minimum, out, outs, groups, config=config, ROOM=room,
    )  # fmt: skip


def _launch_few(
    x: Tensor, weight: PackedWeight, out: Tensor, norm: Tensor | None, eps: float, splits: int | None, config: Config
) -> None:
    (rows, columns), outs = x.shape, out.shape[1]
    tiles, groups = blocks(outs, config.blocks["OUTS"]), columns // GROUP
    splits = splits or max(1, min(PROGRAMS // max(tiles, 1), groups // _LEAST_GROUPS))
    share = blocks(blocks(groups, splits), config.blocks["GROUPS"]) * config.blocks["GROUPS"]
    splits = blocks(groups, share)
    parts = sums = None
    if splits > 1:
        parts = torch.empty(splits, rows, outs, dtype=torch.float32, device=x.device)
        sums = None if norm is None else torch.empty(splits, rows, dtype=torch.float32, device=x.device)
    launch(
        _few_rows, (tiles if rows else 0, splits), x, norm, weight.values, weight.scale, weight.minimum, out, parts,
        sums, rows, outs, groups, share, eps, config=config, ROWS=MOST_ROWS,
        WIDEN=interpreted() and x.dtype == torch.bfloat16,
    )  # fmt: skip
    if parts is not None:
        launch(
            _add_parts, (blocks(outs, _ADD.blocks["BLOCK"]), rows), parts, sums, out, rows, outs, columns, splits, eps,
            config=_ADD,
        )  # fmt: skip
