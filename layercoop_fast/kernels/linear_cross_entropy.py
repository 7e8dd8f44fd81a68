"""A language model's head and its loss in one, tile by tile, without the logits of all tokens in memory.

The formula is `linear_cross_entropy_reference` of `reference/head.py`.

On the CPU torch computes the product of the head, one block of tokens at a time; logits have the inputs' dtype, as a
model's own head gives them. While such a tile is in the processor's cache, the core adds it to a running maximum, sum
of exponentials and target logit of every row (Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv
1805.02867), all in fp32. The divergence needs one more running sum: with m the running maximum of the teacher's z',

    kl = Σ_v exp(z'_v − m)(z'_v − z_v) / Σ_v exp(z'_v − m) − lse(z') + lse(z).

A row's result does not depend on the other rows, bit for bit: tiles depend on the vocabulary alone, and batches of
fewer than `MIN_ROWS` rows are padded, since torch multiplies a handful of rows in another way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, is_native, on_gpu, require, require_matrix
from layercoop_fast.kernels.reference.head import TokenLosses, linear_cross_entropy_reference
from layercoop_fast.kernels.rows import MIN_ROWS
from layercoop_fast.spans import HEAD_PRODUCTS, timed

# Tokens of a tile and rows of a pass: a tile's logits (at most 8 MiB in bf16) stay in cache between the product and the
# sums, and the product is still large enough to run at full speed. Every pass reads the whole weight.
TILE_WORDS = 2048
TILE_ROWS = 2048

_LOWEST = torch.finfo(torch.float32).min


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
    if on_gpu(hidden):
        from layercoop_fast.kernels.gpu.linear_cross_entropy import launch_head_loss

        nll = hidden.new_empty(len(hidden), dtype=torch.float32)
        kl = None if teacher is None else torch.empty_like(nll)
        launch_head_loss(
            hidden, weight, targets, nll, bias=bias, scale=scale, soft_cap=soft_cap, teacher=teacher, kl=kl
        )
        return TokenLosses(nll, kl)
    if not is_native(hidden) or hidden.numel() == 0:
        return linear_cross_entropy_reference(
            hidden, weight, targets, bias=bias, scale=scale, soft_cap=soft_cap, teacher=teacher
        )
    student = _start(hidden)
    expected = _start(hidden) if teacher is not None else None
    # Two tiles serve the whole call.
    most = max(MIN_ROWS, min(TILE_ROWS, len(hidden))) * min(TILE_WORDS, len(weight))
    tiles = hidden.new_empty(1 if teacher is None else 2, most)
    for first_row in range(0, len(hidden), TILE_ROWS):
        rows = slice(first_row, first_row + TILE_ROWS)
        states = _padded(hidden[rows])
        teacher_states = None if teacher is None else _padded(teacher[rows])
        for first_word in range(0, len(weight), TILE_WORDS):
            words = slice(first_word, first_word + TILE_WORDS)
            tile_bias = None if bias is None else bias[words]
            count = len(hidden[rows])
            logits = _product(states, weight[words], tile_bias, tiles[0])[:count]
            teacher_logits = None
            if teacher_states is not None:
                teacher_logits = _product(teacher_states, weight[words], tile_bias, tiles[1])[:count]
            _C.running_loss(
                array(logits),
                array(targets[rows]),
                first_word,
                array(student[rows]),
                scale,
                soft_cap or 0.0,
                None if teacher_logits is None else array(teacher_logits),
                None if expected is None else array(expected[rows]),
            )
    log_sum = _log_sum(student)
    nll = log_sum - student[:, 2]
    if expected is None:
        return TokenLosses(nll)
    return TokenLosses(nll, expected[:, 2] / expected[:, 1] - _log_sum(expected) + log_sum)


def _product(states: Tensor, weight: Tensor, bias: Tensor | None, tile: Tensor) -> Tensor:
    """Logits [r, v] of states [r, H] and rows [v, H] of the weight, in the memory of `tile`."""
    out = tile[: len(states) * len(weight)].view(len(states), len(weight))
    with timed(HEAD_PRODUCTS):
        if bias is None:
            return torch.mm(states, weight.t(), out=out)
        return torch.addmm(bias, states, weight.t(), out=out)


def _start(hidden: Tensor) -> Tensor:
    """Running (maximum, sum, target logit) of every row before its first tile: fp32 [R, 3]."""
    return torch.tensor([_LOWEST, 0.0, 0.0]).repeat(len(hidden), 1)


def _log_sum(running: Tensor) -> Tensor:
    return running[:, 0] + running[:, 1].log()


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
