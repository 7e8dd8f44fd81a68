"""Products of a few rows with weights of 8 or 4 bits, with the norm before them: decoding's products on a GPU.

The formula is `quantised_linear_reference` of `reference/quantised.py`; on a GPU `gpu/gemv.py` computes it, 16 rows at
a time. Weights are rounded as on the CPU (`quantise.py`), so both multiply by the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.memory import require, require_matrix
from layercoop_fast.kernels.reference.quantised import GROUP, PackedWeight, quantised_linear_reference


def quantised_linear(x: Tensor, weight: PackedWeight, norm: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """Norm, where its weight [K] is given, and multiply: x [R, K] of fp32, bf16 or fp16 → [R, O].

    Each 16 rows read the packed weights once more: for many rows multiply by `weight.unpack()` instead.

    Raises:
        RequestError: for shapes and dtypes that do not fit.
    """
    require_matrix(x, "x")
    rows, columns = x.shape
    if columns % GROUP or columns == 0:
        raise RequestError(f"x: {columns} columns are not a multiple of {GROUP}")
    outs, minimum = len(weight.values), weight.minimum
    width, dtype = (columns, torch.int8) if minimum is None else (columns // 2, torch.uint8)
    for name, tensor, shape, kind in (
        ("values", weight.values, (outs, width), dtype),
        ("scale", weight.scale, (outs, columns // GROUP), torch.float16),
        ("minimum", weight.scale if minimum is None else minimum, (outs, columns // GROUP), torch.float16),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype != kind or not tensor.is_contiguous():
            raise RequestError(
                f"{name}: expected contiguous {kind} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
    if norm is not None:
        require(norm, "norm", (columns,), x)
    if not by_kernel("quantised_linear", x):
        return quantised_linear_reference(x, weight, norm, eps)
    from layercoop_fast.kernels.gpu.gemv import launch_quantised

    out = x.new_empty(rows, outs)
    launch_quantised(x, weight, out, norm=norm, eps=eps)
    return out
