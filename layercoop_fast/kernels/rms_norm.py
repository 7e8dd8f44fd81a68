"""Root-mean-square norm, with the residual addition before it.

    sum = x + delta                                     (sum = x where there is no delta)
    out = weight · (sum / sqrt(mean(sum²) + eps))       the mean over a row

x, delta, out: [R, H]; weight: [H]; fp32 or bf16, all alike. In bf16 the sum is rounded before it is normed, and the
quotient before it is multiplied by the weight, as the norms of Hugging Face's llama-shaped models do; all else is fp32.

Source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.kernels.memory import array, is_native, on_gpu, require, require_matrix
from layercoop_fast.kernels.reference.blocks import rms_norm_reference


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Norm the rows of x [R, H]; `out` may be x itself."""
    require_matrix(x, "x")
    require(weight, "weight", (x.shape[1],), x)
    out = _output(out, x, "out")
    if on_gpu(x) and x.shape[1]:
        from layercoop_fast.kernels.gpu.gather_norm import launch_norm

        launch_norm(x, weight, eps, out)
        return out
    if not is_native(x) or x.shape[1] == 0:
        return out.copy_(rms_norm_reference(x, weight, eps))
    _C.rms_norm(array(x), array(weight), eps, array(out))
    return out


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None, total: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return x + delta and its norm, both [R, H]; each output may be one of the inputs, but not the other output."""
    require_matrix(x, "x")
    require_matrix(delta, "delta")
    require(delta, "delta", tuple(x.shape), x)
    require(weight, "weight", (x.shape[1],), x)
    out, total = _output(out, x, "out"), _output(total, x, "total")
    if on_gpu(x) and x.shape[1]:
        from layercoop_fast.kernels.gpu.gather_norm import launch_norm

        launch_norm(x, weight, eps, out, delta=delta, total=total)
        return total, out
    if not is_native(x) or x.shape[1] == 0:
        torch.add(x, delta, out=total)
        return total, out.copy_(rms_norm_reference(total, weight, eps))
    _C.rms_norm(array(x), array(weight), eps, array(out), array(delta), array(total))
    return total, out


def _output(given: Tensor | None, like: Tensor, name: str) -> Tensor:
    if given is None:
        return torch.empty_like(like)
    require_matrix(given, name)
    require(given, name, tuple(like.shape), like)
    return given
