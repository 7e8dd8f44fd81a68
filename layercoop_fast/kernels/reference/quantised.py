"""Weights in integers of 8 or 4 bits with a scale for every 32 columns, and products with them.

    int8    w ≈ scale · q           q in −127..127
    int4    w ≈ scale · q + min     q in 0..15

Source: blocks and rounding as in Q8_0 and Q4_1 of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layercoop_fast.kernels.reference.blocks import rms_norm_reference

GROUP = 32
# By how much of its length a group's range is cut at an end: candidates of the search for scales.
_CUTS_INT8 = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1)
_CUTS_INT4 = (0.0, 0.03, 0.06, 0.1, 0.15)
_REFITS = 2


def groups_of(columns: int) -> int:
    """The number of groups that cover `columns` columns."""
    return -(-columns // GROUP)


def dequantise(q: Tensor, scales: Tensor, mins: Tensor | None = None) -> Tensor:
    """scale · q (+ min) in fp32: integers [N, K], scales and mins [N, G] → [N, K]."""
    rows, columns = q.shape
    spread = [
        value.float().repeat_interleave(GROUP, dim=1)[:, :columns] for value in (scales, mins) if value is not None
    ]
    weights = spread[0].reshape(rows, columns) * q
    return weights if mins is None else weights + spread[1].reshape(rows, columns)


def quantise_int8_reference(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Integers int8 [N, K] and scales fp16 [N, G] of weights [N, K] that lie on no grid.

    A group's scale is that of least squared error among: its largest magnitude / 127, cut by some shares, and two
    refits by least squares to the integers found so.
    """
    groups, mask = _grouped(weights)
    largest = groups.abs().amax(dim=1)
    best = _Best(groups, mask, -127, 127)
    for cut in _CUTS_INT8:
        best.offer(largest * (1 - cut) / 127, torch.zeros_like(largest))
    for _ in range(_REFITS):
        products, squares = (groups * best.q * mask).sum(dim=1), (best.q**2 * mask).sum(dim=1)
        best.offer(torch.where(squares > 0, products / squares, 0.0), torch.zeros_like(largest))
    return _rows(best.q, weights).to(torch.int8), _by_row(best.scale, weights)


def quantise_int4_reference(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers uint8 [N, K], scales and mins fp16 [N, G] of weights [N, K] that lie on no grid.

    As `quantise_int8_reference`, with ranges that are cut at either end.
    """
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
    return _rows(best.q, weights).to(torch.uint8), _by_row(best.scale, weights), _by_row(best.low, weights)


class _Best:
    """For each group the scale and min of least squared error among those offered, and the integers."""

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
    place = torch.arange(groups_of(columns) * GROUP)
    real = place < columns
    groups = weights.float()[:, torch.where(real, place, place // GROUP * GROUP)].reshape(-1, GROUP)
    return groups, real.float().repeat(rows, 1).reshape(-1, GROUP)


def _rows(groups: Tensor, weights: Tensor) -> Tensor:
    rows, columns = weights.shape
    return groups.reshape(rows, groups_of(columns) * GROUP)[:, :columns]


def _by_row(factors: Tensor, weights: Tensor) -> Tensor:
    return factors.half().reshape(len(weights), groups_of(weights.shape[1]))


def linear_reference(x: Tensor, weight: Tensor, format: str, *, bf16_inputs: bool = False) -> Tensor:
    """x̂ · ŵᵀ in the dtype of `weight`: x fp32 [R, K] and ŵ [N, K], as it is kept → [R, N].

    x̂ is x for fp32 and bf16 weights, rounded to bf16 for the latter where `bf16_inputs` (the machine multiplies bf16
    numbers itself); for int8 and int4 it is `quantise_inputs_reference` of x, multiplied out.
    """
    if format in ("int8", "int4"):
        q, scales = quantise_inputs_reference(x)
        x = scales.repeat_interleave(GROUP, dim=1)[:, : x.shape[1]].to(weight.dtype) * q
    elif format == "bf16" and bf16_inputs:
        x = x.bfloat16()
    return x.to(weight.dtype) @ weight.T


def quantise_inputs_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers round(x / scale) [R, K], and scales max |x| / 127 [R, G], of the groups of fp32 inputs [R, K]."""
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, -columns % GROUP))
    groups = padded.reshape(rows, groups_of(columns), GROUP)
    largest = groups.abs().amax(dim=2)
    inverse = torch.where(largest > 1e-30, 127 / largest, 0.0)
    q = (groups * inverse[:, :, None]).round()
    scales = torch.where(largest > 1e-30, largest / 127, 0.0)
    return q.reshape(padded.shape)[:, :columns], scales


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [O, K] of integers in groups of 32 columns, K a multiple of 32, as the GPU kernels read it.

    Attributes:
        values: int8 [O, K], or of 4 bits uint8 [O, K/2]: byte j of a group's 16 holds columns j (low half) and j + 16
            (high half), so that nothing is shuffled.
        scale: fp16 [O, K/32].
        minimum: fp16 [O, K/32]; None for 8 bits.
    """

    values: Tensor
    scale: Tensor
    minimum: Tensor | None

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same [O, K] on a device."""
        minimum = None if self.minimum is None else self.minimum.to(device)
        return PackedWeight(self.values.to(device), self.scale.to(device), minimum)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights: [O, K]."""
        scale = self.scale.to(dtype)[..., None]
        if self.minimum is None:
            groups = self.values.view(*self.scale.shape, GROUP).to(dtype) * scale
        else:
            packed = self.values.view(*self.scale.shape, GROUP // 2)
            groups = torch.cat([packed & 15, packed >> 4], dim=-1).to(dtype) * scale
            groups = groups + self.minimum.to(dtype)[..., None]
        return groups.flatten(1)


def quantised_linear_reference(x: Tensor, weight: PackedWeight, norm: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """x · Wᵀ, or rms_norm(x) · Wᵀ with a norm's weight [K], in x's precision but at least fp32: [R, K] → [R, O]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    u = x.to(wide) if norm is None else rms_norm_reference(x.to(wide), norm.to(wide), eps)
    return (u @ weight.unpack(wide).t()).to(x.dtype)
