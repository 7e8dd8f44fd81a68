"""A language model's head and its loss in one, tile by tile, without the logits of all tokens in memory.

The formula is `linear_cross_entropy_reference` of `reference/head.py`.

On the CPU torch computes the product of the head, one block of tokens at a time; logits have the inputs' dtype, as a
model's own head gives them. While such a tile is in the processor's cache, the core adds it to a running maximum, sum
of exponentials and target logit of every row (Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv
1805.02867), all in fp32. The divergence needs one more running sum: with m the running maximum of the teacher's z',

    kl = Σ_v exp(z'_v − m)(z'_v − z_v) / Σ_v exp(z'_v − m) − lse(z') + lse(z).

A row's result does not depend on the other rows, bit for bit: tiles depend on the vocabulary alone, and batches of
fewer than `MIN_ROWS` rows are padded, since torch multiplies a handful of rows in another way.

On a GPU one Triton kernel computes products and sums of a tile (`gpu/linear_cross_entropy.py`). Where that is not to be
used, and in dtypes that the core lacks, the same tiles are made by the library's product, and torch's operations add
them up. On a GPU they are so large that their logits stay in the chip's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.linear import linear
from layercoop_fast.kernels.memory import is_native, on_gpu, require, require_matrix
from layercoop_fast.kernels.reference.head import TokenLosses
from layercoop_fast.kernels.rows import MIN_ROWS
from layercoop_fast.kernels.running_loss import CoreSums, TorchSums, wide
from layercoop_fast.spans import HEAD_PRODUCTS, timed

# Tokens of a tile and rows of a pass: a tile's logits (at most 8 MiB in bf16) stay in cache between the product and the
# sums, and the product is still large enough to run at full speed. Every pass reads the whole weight.
TILE_WORDS = 2048
TILE_ROWS = 2048
# On a GPU: as many rows of so many tokens are 32 MiB in 16 bits, which an A100's or an H100's cache holds.
GPU_TILE_WORDS = 8192


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    teacher: Tensor | None = None,
) -> TokenLosses:
    """Negative log-likelihood of each target, and the divergence from a teacher's distribution where one is given.

    On a GPU, logits are not rounded to the inputs' dtype, and the loss is NaN where a target is not a token: checking
    the targets would make the host wait.

    Args:
        hidden: [R, H], fp32 or bf16 (on a GPU fp16 too).
        weight: [V, H].
        targets: int64 [R], tokens.
        bias: [V].
        scale: of the logits.
        soft_cap: above 0; None: no cap.
        teacher: [R, H], the teacher's states before the same head.

    Returns:
        Losses in nats, fp32 [R].

    Raises:
        RequestError: for shapes, dtypes or targets that do not fit.
    """
    _check(hidden, weight, targets, bias, soft_cap, teacher)
    if by_kernel("linear_cross_entropy", hidden):
        from layercoop_fast.kernels.gpu.linear_cross_entropy import launch_head_loss

        nll = hidden.new_empty(len(hidden), dtype=torch.float32)
        kl = None if teacher is None else torch.empty_like(nll)
        launch_head_loss(
            hidden, weight, targets, nll, bias=bias, scale=scale, soft_cap=soft_cap, teacher=teacher, kl=kl
        )
        return TokenLosses(nll, kl)
    return by_tiles(hidden, weight, targets, bias=bias, scale=scale, soft_cap=soft_cap, teacher=teacher)


def by_tiles(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    teacher: Tensor | None = None,
) -> TokenLosses:
    """As `linear_cross_entropy`, by the library's products of tiles, on any device.

    hidden, teacher: [R, H]; weight: [V, H]; targets: int64 [R]; bias: [V]; all checked before.
    """
    running = CoreSums if is_native(hidden) and hidden.numel() else TorchSums
    words_of_tile = TILE_WORDS if hidden.device.type == "cpu" else GPU_TILE_WORDS
    nll = hidden.new_empty(len(hidden), dtype=wide(hidden))
    kl = None if teacher is None else torch.empty_like(nll)
    # Two tiles serve the whole call.
    most = max(MIN_ROWS, min(TILE_ROWS, len(hidden))) * min(words_of_tile, len(weight))
    tiles = hidden.new_empty(1 if teacher is None else 2, most)
    for first_row in range(0, len(hidden), TILE_ROWS):
        rows = slice(first_row, first_row + TILE_ROWS)
        sums = running(targets[rows], scale, soft_cap, with_teacher=teacher is not None)
        states = _padded(hidden[rows])
        teacher_states = None if teacher is None else _padded(teacher[rows])
        for first_word in range(0, len(weight), words_of_tile):
            words = slice(first_word, first_word + words_of_tile)
            tile_bias = None if bias is None else bias[words]
            count = len(hidden[rows])
            logits = _product(states, weight[words], tile_bias, tiles[0])[:count]
            teacher_logits = None
            if teacher_states is not None:
                teacher_logits = _product(teacher_states, weight[words], tile_bias, tiles[1])[:count]
            sums.add(logits, teacher_logits, first_word)
        nll[rows] = sums.nll()
        if kl is not None:
            kl[rows] = sums.kl()
    if hidden.device.type != "cpu":
        nll.masked_fill_((targets < 0) | (targets >= len(weight)), float("nan"))
    return TokenLosses(nll, kl)


def _product(states: Tensor, weight: Tensor, bias: Tensor | None, tile: Tensor) -> Tensor:
    """Logits [r, v] of states [r, H] and rows [v, H] of the weight, in the memory of `tile`."""
    out = tile[: len(states) * len(weight)].view(len(states), len(weight))
    with timed(HEAD_PRODUCTS):
        return linear(states, weight, bias, out)


def _padded(states: Tensor) -> Tensor:
    missing = MIN_ROWS - len(states)
    return torch.cat([states, states[:1].expand(missing, -1)]) if missing > 0 else states


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    soft_cap: float | None,
    teacher: Tensor | None,
) -> None:
    require_matrix(hidden, "hidden")
    require_matrix(weight, "weight")
    words = len(weight)
    if words == 0:
        raise RequestError("weight: expected at least one row")
    require(weight, "weight", (words, hidden.shape[1]), hidden)
    if bias is not None:
        require(bias, "bias", (words,), hidden)
    if teacher is not None:
        require_matrix(teacher, "teacher")
        require(teacher, "teacher", tuple(hidden.shape), hidden)
    if targets.dtype != torch.int64 or tuple(targets.shape) != (len(hidden),) or targets.device != hidden.device:
        raise RequestError(
            f"targets: expected int64 [{len(hidden)}] on {hidden.device}, got {targets.dtype} "
            f"{list(targets.shape)} on {targets.device}"
        )
    if not on_gpu(hidden) and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < words:
        raise RequestError(f"targets: {int(targets.min())}..{int(targets.max())} are not all in 0..{words - 1}")
    if soft_cap is not None and not soft_cap > 0:
        raise RequestError(f"soft_cap: {soft_cap} is not a positive number")
