"""Linear maps by the C++ products of decoding: weights are packed once, as the native executor packs them.

    out[r, i] = Σ_k x̂[r, k] · ŵ[i, k]

ŵ are the weights as they are kept: unchanged ("fp32"), rounded to bf16 ("bf16"), or quantised ("int8", "int4":
`quantise.py`). x̂ is as in `linear_reference` of `reference/quantised.py`: for int8 and int4 weights x is quantised too.
Sums are in fp32 over the columns in order; those within a group of integers are exact.

x: [R, K] fp32, for R = 1 to 16 above all; out: [R, N] fp32. A row's result does not depend on the other rows, bit for
bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, require, require_matrix
from layercoop_fast.kernels.quantise import ORIGINS
from layercoop_fast.llama.native_packing import FORMATS

_ROWS_AT_A_TIME = 512  # rows that are held in fp32 while they are packed


class PackedLinear:
    """The packed weights [N, K] of a linear map without bias.

    Args:
        weight: [N, K], fp32, bf16 or fp16 on the CPU; not kept.
        format: "fp32", "bf16", "int8" or "int4".
        origin: the dtype to which the weights were last rounded, by which grids are recognised; None: that of `weight`.

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
        """The name of the format, one of `FORMATS`."""
        return self.packed.format

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs."""
        return self.packed.rows, self.packed.columns

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.packed.nbytes

    def unpack(self, first: int = 0, count: int | None = None) -> Tensor:
        """ŵ: rows first to first + count as fp32 [count, K], by default all."""
        rows, columns = self.shape
        count = rows - first if count is None else count
        if not 0 <= first <= first + count <= rows:
            raise RequestError(f"rows {first} to {first + count} are not within {rows}")
        out = torch.empty(count, columns)
        self.packed.unpack(first, out.numpy())
        return out

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """x · ŵᵀ: fp32 [R, K] → fp32 [R, N]. Raises `RequestError` for other shapes and dtypes."""
        require_matrix(x, "x")
        rows, columns = self.shape
        require(x, "x", (len(x), columns), torch.empty(0))
        if out is None:
            out = x.new_empty(len(x), rows)
        require_matrix(out, "out")
        require(out, "out", (len(x), rows), x)
        self.packed.multiply(array(x), array(out))
        return out
