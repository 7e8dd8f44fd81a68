"""The gate of a gated MLP, on the joint projection of gate and up.

    out = silu(gate) · up,    silu(g) = g / (1 + exp(−g))

gate_up: [R, 2I], a row's I gates first, then its I ups; out: [R, I]; fp32 or bf16. In bf16 silu(gate) is rounded before
it is multiplied, as Hugging Face's MLPs do.

Source: Shazeer, GLU Variants Improve Transformer (arXiv 2002.05202).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.memory import array, is_native, require, require_matrix
from layercoop_fast.kernels.reference.blocks import geglu_reference, swiglu_reference, swiglu_slopes_reference


def swiglu(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply silu(gate) by up: [R, 2I], a row's gates first → [R, I]."""
    return _gated(gate_up, out, gelu=False)


def swiglu_slopes(slope: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient of `swiglu` for gate_up [R, 2I], from a slope of its result [R, I]: [R, 2I]."""
    require_matrix(gate_up, "gate_up")
    require_matrix(slope, "slope")
    require(slope, "slope", (len(gate_up), gate_up.shape[1] // 2), gate_up)
    if not is_native(gate_up):
        return swiglu_slopes_reference(slope, gate_up)
    out = torch.empty_like(gate_up)
    _C.swiglu_slopes(array(gate_up), array(slope), array(out))
    return out


def geglu(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply the tanh form of gelu(gate) by up: [R, 2I], a row's gates first → [R, I]."""
    return _gated(gate_up, out, gelu=True)


def _gated(gate_up: Tensor, out: Tensor | None, *, gelu: bool) -> Tensor:
    require_matrix(gate_up, "gate_up")
    rows, columns = gate_up.shape
    if columns % 2:
        raise RequestError(f"gate_up: {columns} columns are not a gate and an up of one width")
    if out is None:
        out = gate_up.new_empty(rows, columns // 2)
    require_matrix(out, "out")
    require(out, "out", (rows, columns // 2), gate_up)
    if by_kernel("gated", gate_up):
        from layercoop_fast.kernels.gpu.swiglu import launch_gated

        launch_gated(gate_up, out, gelu=gelu)
        return out
    if not is_native(gate_up):
        return out.copy_((geglu_reference if gelu else swiglu_reference)(gate_up))
    (_C.geglu if gelu else _C.swiglu)(array(gate_up), array(out))
    return out
