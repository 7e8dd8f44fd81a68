"""Quantising weights to integers, in groups of 32 columns.

    int8    w ≈ scale · q           q in −127..127
    int4    w ≈ scale · q + min     q in 0..15

weights: [N, K]; q: [N, K] int8 or uint8; scales, mins: [N, G] fp16 with G = ⌈K / 32⌉. Integers are rounded to nearest.
The scale (and min) of a group has the least squared error among the candidates of `quantise_int8_reference` and
`quantise_int4_reference` (`reference/quantised.py`).

A group whose weights lie on such a grid already is recognised and kept exactly: every weight equals scale · q (+ min),
computed in fp32 and rounded to `origin`, the dtype to which the weights were last rounded. So a checkpoint made from a
GGUF file of Q4_1 or Q8_0 blocks gets its own blocks back. Where several grids fit, each gives the same weights.

Source: blocks and rounding as in Q8_0 and Q4_1 of llama.cpp.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, require_matrix
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight, groups_of

ORIGINS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def quantise_int8(weights: Tensor, origin: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Quantise [N, K] of fp32, bf16 or fp16 → q int8 [N, K], scales fp16 [N, G].

    Args:
        weights: [N, K] on the CPU.
        origin: the dtype to which they were last rounded; None: their own.

    Raises:
        RequestError: for anything but a matrix of finite numbers whose scales are within fp16.
    """
    name = _checked(weights, origin)
    q = torch.empty(weights.shape, dtype=torch.int8)
    scales = torch.empty(len(weights), groups_of(weights.shape[1]), dtype=torch.float16)
    try:
        _C.quantise_int8(array(weights.float()), name, q.numpy(), scales.numpy().view(np.uint16))
    except ValueError as error:
        raise RequestError(str(error)) from None
    return q, scales


def quantise_int4(weights: Tensor, origin: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise [N, K] → q uint8 [N, K], scales and mins fp16 [N, G]; otherwise as `quantise_int8`."""
    name = _checked(weights, origin)
    q = torch.empty(weights.shape, dtype=torch.uint8)
    scales = torch.empty(len(weights), groups_of(weights.shape[1]), dtype=torch.float16)
    mins = torch.empty_like(scales)
    bits = [value.numpy().view(np.uint16) for value in (scales, mins)]
    try:
        _C.quantise_int4(array(weights.float()), name, q.numpy(), *bits)
    except ValueError as error:
        raise RequestError(str(error)) from None
    return q, scales, mins


def _checked(weights: Tensor, origin: torch.dtype | None) -> str:
    """The name of `origin`."""
    require_matrix(weights, "weights")
    origin = weights.dtype if origin is None else origin
    if origin not in ORIGINS or weights.dtype not in ORIGINS or weights.device.type != "cpu":
        raise RequestError(
            f"weights: expected fp32, bf16 or fp16 on the CPU, got {weights.dtype} on {weights.device}, from {origin}"
        )
    return ORIGINS[origin]


def pack(weight: Tensor, bits: int) -> PackedWeight:
    """Quantise a matrix [O, K] of fp32, bf16 or fp16 on the CPU, K a multiple of 32, to 4 or 8 bits, and pack it.

    Raises:
        RequestError: for other widths and bits, and as `quantise_int8`.
    """
    if bits not in (4, 8) or weight.dim() != 2 or weight.shape[1] % GROUP:
        raise RequestError(
            f"weight: expected 4 or 8 bits of [O, a multiple of {GROUP}], got {bits} of {list(weight.shape)}"
        )
    if bits == 8:
        return PackedWeight(*quantise_int8(weight), None)
    values, scale, minimum = quantise_int4(weight)
    nibbles = values.view(*scale.shape, GROUP)
    packed = nibbles[..., : GROUP // 2] | (nibbles[..., GROUP // 2 :] << 4)
    return PackedWeight(packed.reshape(weight.shape[0], -1), scale, minimum)
