"""A language model's head and its loss in one, tile by tile, without logits in memory.

The formula is `linear_cross_entropy_reference` of `kernels/reference/head.py`; logits are not rounded to the inputs'
dtype. nll is NaN where a target is not a token: checking targets on the host would make it wait for the device.

A program computes the logits of a tile of rows and tokens in fp32, and leaves a maximum, a sum of exponentials and the
target's logit for each row: 12 bytes a row and tile, where the logits would be 2 bytes a row and token. A second kernel
merges them (Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867). With a teacher both
products use the same tile of the weight, and one more sum is left, Σ exp(z' − m')(z' − z) for the teacher's z' and its
maximum m'.

Why not a library: cuBLAS and cross_entropy hold all logits (8 GB for 16,384 rows of 128k tokens in fp32). Liger-Kernel
(and torch's own linear_cross_entropy, by options) works on chunks of rows whose logits are in memory, rounded, and its
divergence is one sum, for a teacher's probabilities in memory. Apple's cut-cross-entropy holds no logits, as here, and
takes no teacher.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, interpreted, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen

# Rows of one launch: what their tiles leave takes less than some 100 MB.
MOST_ROWS = 16384

CONFIGS = {
    "large": Config("large", {"ROWS": 256, "WORDS": 128, "DEPTH": 64, "GROUP": 8}, warps=8, stages=3),
    "medium": Config("medium", {"ROWS": 128, "WORDS": 128, "DEPTH": 64, "GROUP": 16}, warps=8, stages=3),
    "teacher": Config("teacher", {"ROWS": 64, "WORDS": 128, "DEPTH": 64, "GROUP": 16}, warps=8, stages=3),
    "small": Config("small", {"ROWS": 64, "WORDS": 64, "DEPTH": 32, "GROUP": 16}, warps=4, stages=2),
    "amd": Config("amd", {"ROWS": 128, "WORDS": 128, "DEPTH": 64, "GROUP": 16}, warps=8, stages=2),
    "amd_teacher": Config("amd_teacher", {"ROWS": 64, "WORDS": 128, "DEPTH": 64, "GROUP": 16}, warps=8, stages=2),
}


@triton.jit
def _finished(product, bias, word, words, scale, cap, CAPPED: tl.constexpr):
    """Logits from products: bias, scale, soft cap; −inf beyond the vocabulary."""
    if bias is not None:
        product += tl.load(bias + word, mask=word < words, other=0.0).to(tl.float32)[None, :]
    logits = product * scale
    if CAPPED:
        logits = cap * (1 - 2 / (tl.exp(2 * logits / cap) + 1))
    return tl.where((word < words)[None, :], logits, float("-inf"))


@triton.jit
def _piece(place, inside, EVEN: tl.constexpr, WIDEN: tl.constexpr):
    """Numbers at these places; 0 outside, where a size is not a multiple of the block."""
    found = tl.load(place) if EVEN else tl.load(place, mask=inside, other=0.0)
    return found.to(tl.float32) if WIDEN else found  # Triton's interpreter has no products of bf16


@triton.jit
def _leave(place, apart, logits, here):
    """Store each row's maximum and sum of exponentials; return the exponentials."""
    top = tl.max(logits, axis=1)
    shares = tl.exp(logits - top[:, None])
    tl.store(place, top, mask=here)
    tl.store(place + apart, tl.sum(shares, axis=1), mask=here)
    return shares


@triton.jit
def _log_sum(place, apart, inside):
    """From what `_leave` stored for a row's tiles: the logarithm of their sum, each one's factor, the weighted sum."""
    tops = tl.load(place, mask=inside, other=float("-inf"))
    top = tl.max(tops, axis=0)
    factors = tl.exp(tops - top)
    total = tl.sum(tl.load(place + apart, mask=inside, other=0.0) * factors, axis=0)
    return top + tl.log(total), factors, total


@triton.jit
def _tiles(
    hidden, weight, bias, targets, teacher, left, rows, words, width, row_tiles, word_tiles, scale, cap,
    ROWS: tl.constexpr, WORDS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    # Programs of a group go through its rows first: a tile of the weight is read once for all of them.
    in_group = GROUP * word_tiles
    group = tl.program_id(0) // in_group
    height = tl.minimum(row_tiles - group * GROUP, GROUP)
    row_tile = group * GROUP + tl.program_id(0) % in_group % height
    word_tile = tl.program_id(0) % in_group // height

    row = row_tile * ROWS + tl.arange(0, ROWS)
    word = word_tile * WORDS + tl.arange(0, WORDS)
    depth = tl.arange(0, DEPTH)
    # Rows and words beyond the last read the tile's first: their results are not stored, or masked. Within a
    # tile 32 bits suffice, which saves registers.
    hidden += (row_tile * ROWS).to(tl.int64) * width
    weight += (word_tile * WORDS).to(tl.int64) * width
    if teacher is not None:
        teacher += (row_tile * ROWS).to(tl.int64) * width
    row_start = tl.where(row < rows, tl.arange(0, ROWS), 0)[:, None] * width + depth[None, :]
    word_start = tl.where(word < words, tl.arange(0, WORDS), 0)[None, :] * width + depth[:, None]
    product = tl.zeros((ROWS, WORDS), dtype=tl.float32)
    teacher_product = product
    for start in range(0, width, DEPTH):
        inside = start + depth < width
        w = _piece(weight + word_start + start, inside[:, None], EVEN, WIDEN)
        h = _piece(hidden + row_start + start, inside[None, :], EVEN, WIDEN)
        product = tl.dot(h, w, product, input_precision="ieee")
        if teacher is not None:
            t = _piece(teacher + row_start + start, inside[None, :], EVEN, WIDEN)
            teacher_product = tl.dot(t, w, teacher_product, input_precision="ieee")

    logits = _finished(product, bias, word, words, scale, cap, CAPPED)
    target = tl.load(targets + row, mask=row < rows, other=-1)
    at_target = tl.sum(tl.where(word[None, :] == target[:, None], logits, 0.0), axis=1)
    place = left + row.to(tl.int64) * word_tiles + word_tile
    apart = tl.cast(rows, tl.int64) * word_tiles  # rows may be a constant, 1
    _leave(place, apart, logits, row < rows)
    tl.store(place + 2 * apart, at_target, mask=row < rows)
    if teacher is not None:
        expected = _finished(teacher_product, bias, word, words, scale, cap, CAPPED)
        gap = tl.where((word < words)[None, :], expected - logits, 0.0)
        share = _leave(place + 3 * apart, apart, expected, row < rows)
        tl.store(place + 5 * apart, tl.sum(share * gap, axis=1), mask=row < rows)


@triton.jit
def _merge(left, targets, nll, kl, rows, words, word_tiles, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK)
    inside = tile < word_tiles
    place = left + row * word_tiles + tile
    apart = tl.cast(rows, tl.int64) * word_tiles  # rows may be a constant, 1
    log_sum, _factors, _total = _log_sum(place, apart, inside)
    at_target = tl.sum(tl.load(place + 2 * apart, mask=inside, other=0.0), axis=0)
    target = tl.load(targets + row)
    tl.store(nll + row, tl.where((target >= 0) & (target < words), log_sum - at_target, float("nan")))
    if kl is not None:
        of_teacher, factors, total = _log_sum(place + 3 * apart, apart, inside)
        gap = tl.sum(tl.load(place + 5 * apart, mask=inside, other=0.0) * factors, axis=0)
        tl.store(kl + row, gap / total - of_teacher + log_sum)


def launch_head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    nll: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    teacher: Tensor | None = None,
    kl: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """Fill nll [R], and with a teacher kl [R], both fp32, from hidden [R, H] and weight [V, H]."""
    words, width = weight.shape
    rule = _rule(hidden.dtype, teacher is not None)
    key = (words, width, hidden.dtype, teacher is not None)
    config = config or chosen("linear_cross_entropy", key, CONFIGS, rule)
    word_tiles = blocks(words, config.blocks["WORDS"])
    for first in range(0, hidden.shape[0], MOST_ROWS):
        some = slice(first, first + MOST_ROWS)
        rows = hidden[some].shape[0]
        row_tiles = blocks(rows, config.blocks["ROWS"])
        left = hidden.new_empty((3 if teacher is None else 6, rows, word_tiles), dtype=torch.float32)
        launch(
            _tiles, (row_tiles * word_tiles,), hidden[some], weight, bias, targets[some],
            None if teacher is None else teacher[some], left, rows, words, width, row_tiles, word_tiles, scale,
            soft_cap or 0.0, config=config, EVEN=width % config.blocks["DEPTH"] == 0, CAPPED=soft_cap is not None,
            WIDEN=interpreted() and hidden.dtype == torch.bfloat16,
        )  # fmt: skip
        launch(
            _merge, (rows,), left, targets[some], nll[some], None if kl is None else kl[some], rows, words, word_tiles,
            config=Config("merge", warps=1), BLOCK=power_of_two(word_tiles),
        )  # fmt: skip


def _rule(dtype: torch.dtype, teacher: bool) -> str:
    if torch.version.hip is not None:
        return "amd_teacher" if teacher else "amd"
    if dtype == torch.float32:
        return "small"  # no tensor cores in full fp32, and elements are twice as large
    return "teacher" if teacher else "large"
