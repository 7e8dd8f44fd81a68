"""Root-mean-square norm, and the residual additions next to it.

The formulas are `rms_norm_reference` and `add_branch_reference` of `reference/blocks.py`; `gemma` says which form a
norm has. In bf16 the core rounds where the models of transformers do: the sum before it is normed and, but in Gemma's
form, the quotient before it is multiplied by the weight. All else is fp32.

x, delta, out, total: [R, H]; weight: [H]; fp32 or bf16 (on a GPU fp16 too), all alike. Every function raises
`RequestError` for other shapes and dtypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.memory import array, is_native, require, require_index, require_matrix
from layercoop_fast.kernels.reference.blocks import (
    add_branch_reference,
    rms_norm_reference,
    rms_norm_slopes_reference,
)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, gemma: bool = False, out: Tensor | None = None) -> Tensor:
    """The norm of the rows of x [R, H]: [R, H]; `out` may be x itself."""
    require_matrix(x, "x")
    require(weight, "weight", (x.shape[1],), x)
    out = _output(out, x, "out")
    if x.shape[1] and by_kernel("norm", x):
        from layercoop_fast.kernels.gpu.gather_norm import launch_norm

        launch_norm(x, weight, eps, out, gemma=gemma)
        return out
    if not is_native(x) or x.shape[1] == 0:
        return out.copy_(rms_norm_reference(x, weight, eps, gemma=gemma))
    _C.rms_norm(array(x), array(weight), eps, array(out), gemma=gemma)
    return out


def rms_norm_slopes(
    slope: Tensor, x: Tensor, weight: Tensor, eps: float, *, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of `rms_norm` from a slope [R, H]: for x [R, H], with `base` [R, H] added, and for weight [H]."""
    require_matrix(x, "x")
    require_matrix(slope, "slope")
    require(slope, "slope", tuple(x.shape), x)
    require(weight, "weight", (x.shape[1],), x)
    if base is not None:
        require_matrix(base, "base")
        require(base, "base", tuple(x.shape), x)
    if not is_native(x) or x.shape[1] == 0:
        return rms_norm_slopes_reference(slope, x, weight, eps, base=base)
    of_x, of_weight, factors = torch.empty_like(x), torch.empty_like(weight), torch.empty(len(x))
    added = None if base is None else array(base)
    _C.rms_norm_slopes(array(x), array(weight), eps, array(slope), array(factors), array(of_x), array(of_weight), added)
    return of_x, of_weight


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
    """x + factor · after(delta): [R, H]; `after` [H] is the weight of a norm; `total` may be x or delta."""
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
    keep: Tensor | None = None,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x + delta and its norm, both [R, H]; each output may be one of the inputs, but not the other output.

    With `keep` int32 [R] the sum of a row where that is 0 is x, whatever its delta is.
    """
    require_matrix(x, "x")
    require_matrix(delta, "delta")
    require(delta, "delta", tuple(x.shape), x)
    require(weight, "weight", (x.shape[1],), x)
    if keep is not None:
        require_index(keep, "keep", len(x), x)
    out, total = _output(out, x, "out"), _output(total, x, "total")
    if x.shape[1] and by_kernel("norm", x):
        from layercoop_fast.kernels.gpu.gather_norm import launch_norm

        launch_norm(x, weight, eps, out, delta=delta, keep=keep, total=total, gemma=gemma)
        return total, out
    if keep is not None:
        total.copy_(add_kept(x, delta, keep))
        return total, rms_norm(total, weight, eps, gemma=gemma, out=out)
    if not is_native(x) or x.shape[1] == 0:
        torch.add(x, delta, out=total)
        return total, out.copy_(rms_norm_reference(total, weight, eps, gemma=gemma))
    _C.rms_norm(array(x), array(weight), eps, array(out), array(delta), array(total), gemma=gemma)
    return total, out


def add_kept(x: Tensor, delta: Tensor, keep: Tensor) -> Tensor:
    """x + delta in the rows [R, H] where keep int32 [R] is not 0, and x in the others, whatever their delta is."""
    return torch.where(keep[:, None] != 0, x + delta, x)


def _output(given: Tensor | None, like: Tensor, name: str) -> Tensor:
    if given is None:
        return torch.empty_like(like)
    require_matrix(given, name)
    require(given, name, tuple(like.shape), like)
    return given
