"""Root-mean-square norm, with the residual addition before it.

    sum = x + factor · after(delta)                     (sum = x where there is no delta)
    out = weight · (sum / sqrt(mean(sum²) + eps))       the mean over a row
    out = (1 + weight) · sum / sqrt(mean(sum²) + eps)   Gemma's form (`gemma=True`)

x, delta, out: [R, H]; weight: [H]; fp32 or bf16, all alike. `after` is such a norm too, where there is one: Gemma and
OLMo 2 norm what each half of a block adds. Arithmetic is fp32. In bf16 every quotient (but in Gemma's form), norm,
product with the factor and sum is rounded, as Hugging Face's models do.

Source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.kernels.memory import array, is_native, on_gpu, require, require_matrix


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, gemma: bool = False) -> Tensor:
    """The oracle: x [..., H] → [..., H]."""
    wide = x if x.dtype == torch.float64 else x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if gemma:
        return (unit * (1 + weight.to(wide.dtype))).to(x.dtype)
    return weight * unit.to(x.dtype)


def add_branch_reference(
    x: Tensor, delta: Tensor, *, after: Tensor | None = None, eps: float = 0.0, gemma: bool = False, factor: float = 1.0
) -> Tensor:
    """The oracle of x + factor · after(delta): [R, H] → [R, H]."""
    branch = delta if after is None else rms_norm_reference(delta, after, eps, gemma=gemma)
    return x + (branch if factor == 1 else branch * factor)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, gemma: bool = False, out: Tensor | None = None) -> Tensor:
    """Norm the rows of x [R, H]; `out` may be x itself."""
    require_matrix(x, "x")
    require(weight, "weight", (x.shape[1],), x)
    out = _output(out, x, "out")
    if on_gpu(x) and x.shape[1]:
        from layercoop_fast.kernels.gpu.gather_norm import launch_norm

        launch_norm(x, weight, eps, out, kind="rms_gemma" if gemma else "rms")
        return out
    if not is_native(x) or x.shape[1] == 0:
        return out.copy_(rms_norm_reference(x, weight, eps, gemma=gemma))
    _C.rms_norm(array(x), array(weight), eps, array(out), gemma=gemma)
    return out


def add_branch(
    x: Tensor,
    delta: Tensor,
    *,
    after: Tensor | None = None,
    eps: float = 0.0,
    gemma: bool = False,
    factor: float = 1.0,
    total: Tensor | None = None,
) -> Tensor:
    """Return x + factor · after(delta), [R, H]; after: [H], the weight of a norm; `total` may be x or delta."""
    require_matrix(x, "x")
    require_matrix(delta, "delta")
    require(delta, "delta", tuple(x.shape), x)
    if after is not None:
        require(after, "after", (x.shape[1],), x)
    total = _output(total, x, "total")
    if not is_native(x) or x.shape[1] == 0:
        return total.copy_(add_branch_reference(x, delta, after=after, eps=eps, gemma=gemma, factor=factor))
    weight = None if after is None else array(after)
    _C.rms_norm(
        array(x), None, 0.0, None, array(delta), array(total), after=weight, after_eps=eps, factor=factor, gemma=gemma
    )
    return total


def add_rms_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor,
    eps: float,
    *,
    gemma: bool = False,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x + delta and its norm, both [R, H]; each output may be one of the inputs, but not the other output."""
    require_matrix(x, "x")
    require_matrix(delta, "delta")
    require(delta, "delta", tuple(x.shape), x)
    require(weight, "weight", (x.shape[1],), x)
    out, total = _output(out, x, "out"), _output(total, x, "total")
    if on_gpu(x) and x.shape[1]:
        from layercoop_fast.kernels.gpu.gather_norm import launch_norm

        launch_norm(x, weight, eps, out, delta=delta, total=total, kind="rms_gemma" if gemma else "rms")
        return total, out
    if not is_native(x) or x.shape[1] == 0:
        torch.add(x, delta, out=total)
        return total, out.copy_(rms_norm_reference(total, weight, eps, gemma=gemma))
    _C.rms_norm(array(x), array(weight), eps, array(out), array(delta), array(total), gemma=gemma)
    return total, out


def _output(given: Tensor | None, like: Tensor, name: str) -> Tensor:
    if given is None:
        return torch.empty_like(like)
    require_matrix(given, name)
    require(given, name, tuple(like.shape), like)
    return given
