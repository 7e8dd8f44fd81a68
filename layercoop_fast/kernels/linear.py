"""Linear maps whose weights are packed once and read at the speed of memory: decoding's products.

    out[r, i] = Σ_k x̂[r, k] · ŵ[i, k]

ŵ are the weights as they are kept: themselves ("fp32"), rounded to bf16 ("bf16"), or dequantised ("int8", "int4":
`kernels/quantise.py`). x̂ is x for fp32 and bf16 weights, and for int8 and int4 its own int8 quantisation in groups of
32 columns, x̂ = scale · round(x / scale) with scale = max |x| / 127. Where the machine multiplies bf16 numbers itself
(AVX512-BF16), x̂ for bf16 weights is x rounded to bf16. Sums are in fp32 over the columns in order, those of a group of
integers exact.

x: [R, K] fp32, made for R = 1 to 16; out: [R, N] fp32. A row's result does not depend on the other rows, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, require, require_matrix
from layercoop_fast.kernels.quantise import ORIGINS

FORMATS = ("fp32", "bf16", "int8", "int4")
_ROWS_AT_A_TIME = 512  # rows that are fp32 beside the packed ones while packing


class PackedLinear:
    """The packed weights [N, K] of a linear map without bias.

    Args:
        weight: fp32, bf16 or fp16 on the CPU; not kept.
        format: "fp32", "bf16", "int8" or "int4".
        origin: the dtype the weights were last rounded to, by which grids are recognised; None: that of `weight`.

    Raises:
        RequestError: for anything but a contiguous matrix, weights that are not finite or too large for fp16 scales,
            and an unknown format.
    """

    def __init__(self, weight: Tensor, format: str, *, origin: torch.dtype | None = None) -> None:
        if format not in FORMATS:
            raise RequestError(f"format: unknown '{format}'; use one of {', '.join(FORMATS)}")
        require_matrix(weight, "weight")
        origin = weight.dtype if origin is None else origin
        if origin not in ORIGINS or weight.dtype not in ORIGINS or weight.device.type != "cpu":
            raise RequestError(
                f"weight: expected fp32, bf16 or fp16 on the CPU, got {weight.dtype} on {weight.device}, from {origin}"
            )
        self.packed = _C.PackedMatrix(format, *weight.shape)
        for first in range(0, len(weight), _ROWS_AT_A_TIME):
            rows = weight[first : first + _ROWS_AT_A_TIME].float()
            try:
                self.packed.fill(first, array(rows), ORIGINS[origin])
            except ValueError as error:
                raise RequestError(str(error)) from None

    @property
    def format(self) -> str:
        """What the weights are kept as."""
        return self.packed.format

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs N and inputs K."""
        return self.packed.rows, self.packed.columns

    @property
    def nbytes(self) -> int:
        """What a product reads."""
        return self.packed.nbytes

    def unpack(self, first: int = 0, count: int | None = None) -> Tensor:
        """ŵ: rows first .. first + count as fp32 [count, K], by default all."""
        rows, columns = self.shape
        count = rows - first if count is None else count
        if not 0 <= first <= first + count <= rows:
            raise RequestError(f"rows {first} to {first + count} are not within {rows}")
        out = torch.empty(count, columns)
        self.packed.unpack(first, out.numpy())
        return out

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Multiply: fp32 [R, K] → [R, N]."""
        require_matrix(x, "x")
        rows, columns = self.shape
        require(x, "x", (len(x), columns), torch.empty(0))
        if out is None:
            out = x.new_empty(len(x), rows)
        require_matrix(out, "out")
        require(out, "out", (len(x), rows), x)
        self.packed.multiply(array(x), array(out))
        return out
