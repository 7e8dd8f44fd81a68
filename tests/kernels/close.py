"""Comparisons for the kernels' tests."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal random numbers, rounded to `dtype`."""
    random = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return random.mul_(scale).to(dtype)


def assert_near(found: Tensor, expected: Tensor, *, relative: float, absolute: float = 0.0) -> None:
    """Every element within absolute + relative · |expected|, in float64; NaN and infinity at the same places."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=relative, atol=absolute, equal_nan=True)


def assert_within_a_rounding(found: Tensor, expected: Tensor) -> None:
    """bf16 results at most one representable number apart (numbers of a sign are ordered as their bits)."""
    assert found.dtype == expected.dtype == torch.bfloat16
    bits = [value.view(torch.int16).to(torch.int32) for value in (found, expected)]
    ordered = [torch.where(value < 0, -(value & 0x7FFF), value) for value in bits]
    assert int((ordered[0] - ordered[1]).abs().max()) <= 1 if found.numel() else True
