"""Products of many rows with the weights of a linear map.

    out = x · weightᵀ + bias

x: [R, K]; weight: [N, K]; bias: [N]; out: [R, N], with sums in fp32 or wider and one rounding to the dtype.

torch computes them, but for bf16 on processors without instructions for it, where torch's take many times as long as in
fp32: there the C++ core widens numbers as it reads them. Its rows have the same bits whatever their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.kernels.memory import array, is_native
from layercoop_fast.kernels.precision import is_slow


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Multiply rows x [R, K] with weight [N, K], add bias [N] where there is one: out [R, N], which is returned.

    All are of one dtype and device; shapes are the caller's affair.
    """
    if _by_core(x, weight, out):
        _C.linear_bf16(array(x), array(weight), None if bias is None else array(bias), array(out))
        return out
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def core_multiplies(dtype: torch.dtype) -> bool:
    """Whether the core computes products in a dtype on this processor, instead of torch."""
    return dtype == torch.bfloat16 and is_slow(dtype)


def _by_core(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    if not is_native(x) or not core_multiplies(x.dtype) or x.shape[1] % 2:
        return False
    return x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()
