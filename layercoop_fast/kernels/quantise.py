"""Weights to integers, in groups of 32 columns.

    int8    w ≈ scale · q           q in −127..127
    int4    w ≈ scale · q + min     q in 0..15

weights: [N, K]; q: [N, K] int8 or uint8; scales, mins: [N, ⌈K / 32⌉] fp16. Integers are w in units of the scale,
rounded to nearest. The scale (and min) of a group is that of least squared error among: the whole range of its weights
in equal steps, ranges cut a little at either end, and two refits by least squares to the integers found so.

A group that came from such a grid is recognised and carried exactly: where every weight is scale · q (+ min), computed
in fp32 and rounded to `origin` (what the weights were last rounded to), those are what comes out. A checkpoint made
from a GGUF file of Q4_1 or Q8_0 blocks so gets its own blocks back; of several grids that fit, each gives the same
weights.

Source: blocks and rounding as in llama.cpp's Q8_0 and Q4_1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, require_matrix

GROUP = 32
ORIGINS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_CUTS_INT8 = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1)
_CUTS_INT4 = (0.0, 0.03, 0.06, 0.1, 0.15)
_REFITS = 2


def groups_of(columns: int) -> int:
    """How many groups there are in so many columns."""
    return -(-columns // GROUP)


def quantise_int8(weights: Tensor, origin: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Quantise [N, K] of fp32, bf16 or fp16 → q int8 [N, K], scales fp16 [N, G].

    Args:
        weights: the weights.
        origin: the dtype they were last rounded to; None: their own.

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


def dequantise(q: Tensor, scales: Tensor, mins: Tensor | None = None) -> Tensor:
    """scale · q (+ min) in fp32: [N, K] integers and [N, G] → [N, K]."""
    rows, columns = q.shape
    spread = [
        value.float().repeat_interleave(GROUP, dim=1)[:, :columns] for value in (scales, mins) if value is not None
    ]
    weights = spread[0].reshape(rows, columns) * q
    return weights if mins is None else weights + spread[1].reshape(rows, columns)


def quantise_int8_reference(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle, for weights on no grid: [N, K] → q, scales."""
    groups, mask = _grouped(weights)
    largest = groups.abs().amax(dim=1)
    best = _Best(groups, mask, -127, 127)
    for cut in _CUTS_INT8:
        best.offer(largest * (1 - cut) / 127, torch.zeros_like(largest))
    for _ in range(_REFITS):
        products, squares = (groups * best.q * mask).sum(dim=1), (best.q**2 * mask).sum(dim=1)
        best.offer(torch.where(squares > 0, products / squares, 0.0), torch.zeros_like(largest))
    return _rows(best.q, weights).to(torch.int8), best.scale.half().reshape(len(weights), groups_of(weights.shape[1]))


def quantise_int4_reference(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle, for weights on no grid: [N, K] → q, scales, mins."""
    groups, mask = _grouped(weights)
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    best = _Best(groups, mask, 0, 15)
    for below in _CUTS_INT4:
        for above in _CUTS_INT4:
            cut_low, cut_high = low + below * (high - low), high - above * (high - low)
            best.offer((cut_high - cut_low) / 15, cut_low)
    count = mask.sum(dim=1)
    for _ in range(_REFITS):
        mean_q, mean_w = (best.q * mask).sum(dim=1) / count, (groups * mask).sum(dim=1) / count
        apart = (best.q - mean_q[:, None]) * mask
        squares = (apart**2).sum(dim=1)
        scale = (apart * (groups - mean_w[:, None])).sum(dim=1) / squares
        fits = (squares > 0) & (scale >= 0)
        best.offer(torch.where(fits, scale, best.scale), torch.where(fits, mean_w - scale * mean_q, best.low))
    return (
        _rows(best.q, weights).to(torch.uint8),
        best.scale.half().reshape(len(weights), groups_of(weights.shape[1])),
        best.low.half().reshape(len(weights), groups_of(weights.shape[1])),
    )


class _Best:
    """Of the scales and mins offered, those of least squared error for each group, and the integers."""

    def __init__(self, groups: Tensor, mask: Tensor, least: int, most: int) -> None:
        self.groups, self.mask, self.least, self.most = groups, mask, least, most
        self.q = torch.zeros_like(groups)
        self.scale = self.low = torch.zeros(len(groups))
        self.error = torch.full((len(groups),), math.inf)

    def offer(self, scale: Tensor, low: Tensor) -> None:
        scale, low = scale.half().float(), low.half().float()
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        q = ((self.groups - low[:, None]) * inverse[:, None]).clamp(self.least, self.most).round()
        error = ((self.groups - (scale[:, None] * q + low[:, None])) ** 2 * self.mask).sum(dim=1)
        better = error < self.error
        self.q = torch.where(better[:, None], q, self.q)
        self.scale, self.low = torch.where(better, scale, self.scale), torch.where(better, low, self.low)
        self.error = torch.where(better, error, self.error)


def _grouped(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Groups [N · G, 32], the last of a row filled up with its first weight; 1 where there is a weight, else 0."""
    rows, columns = weights.shape
    place = torch.arange(groups_of(weights.shape[1]) * GROUP)
    real = place < columns
    groups = weights.float()[:, torch.where(real, place, place // GROUP * GROUP)].reshape(-1, GROUP)
    return groups, real.float().repeat(rows, 1).reshape(-1, GROUP)


def _rows(groups: Tensor, weights: Tensor) -> Tensor:
    rows, columns = weights.shape
    return groups.reshape(rows, groups_of(columns) * GROUP)[:, :columns]


def _checked(weights: Tensor, origin: torch.dtype | None) -> str:
    """The name of the origin."""
    require_matrix(weights, "weights")
    origin = weights.dtype if origin is None else origin
    if origin not in ORIGINS or weights.dtype not in ORIGINS or weights.device.type != "cpu":
        raise RequestError(
            f"weights: expected fp32, bf16 or fp16 on the CPU, got {weights.dtype} on {weights.device}, from {origin}"
        )
    return ORIGINS[origin]
