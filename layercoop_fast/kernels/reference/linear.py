"""A linear map with the weights as models hold them."""

from __future__ import annotations

from torch import Tensor


def product_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [R, K] · weightᵀ, weight [N, K], + bias [N] → [R, N]: summed in float64, rounded once to the dtype of x."""
    out = x.double() @ weight.double().t()
    return (out if bias is None else out + bias.double()).to(x.dtype)
