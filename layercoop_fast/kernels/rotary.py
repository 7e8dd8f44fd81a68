"""Rotary position embedding on the queries and keys of a joint projection, with the per-head norm before it.

For each head h [D] of a row at position p:

    h = h · cos[p] + rotate_half(h) · sin[p],    rotate_half(h) = (−h[D/2:], h[:D/2])

and before that, where norm weights are given (QK-norm, as in Qwen3), h = rms_norm(h).

x: [R, C], the heads first in a row (queries, then keys), other columns untouched; row r is at position r mod T. cos,
sin: [T, D], D even. fp32 or bf16, all alike; in bf16 every product and the sum are rounded, as Hugging Face's are.

Source: Su et al., RoFormer (arXiv 2104.09864), in the half-split form that Hugging Face's models use.
"""

from __future__ import annotations

from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, is_native, on_gpu, require, require_matrix
from layercoop_fast.kernels.reference.blocks import rotary_reference


def rotary_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_heads: int,
    key_heads: int,
    *,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Rotate x [R, C] in place and return it."""
    require_matrix(x, "x")
    require_matrix(cos, "cos")
    require_matrix(sin, "sin")
    tokens, width = cos.shape
    require(cos, "cos", (tokens, width), x)
    require(sin, "sin", (tokens, width), x)
    if tokens < 1 or width < 2 or width % 2:
        raise RequestError(f"cos: expected [T, D] with T of at least 1 and D even, got {[tokens, width]}")
    if query_heads < 0 or key_heads < 0 or (query_heads + key_heads) * width > x.shape[1]:
        raise RequestError(f"x: {x.shape[1]} columns do not hold {query_heads} + {key_heads} heads of {width}")
    for name, weight in (("query_norm", query_norm), ("key_norm", key_norm)):
        if weight is not None:
            require(weight, name, (width,), x)
    if on_gpu(x):
        from layercoop_fast.kernels.gpu.rotary import launch_rotary

        launch_rotary(x, cos, sin, query_heads, key_heads, query_norm=query_norm, key_norm=key_norm, eps=eps)
        return x
    if not is_native(x):
        return x.copy_(
            rotary_reference(x, cos, sin, query_heads, key_heads, query_norm=query_norm, key_norm=key_norm, eps=eps)
        )
    _C.rotary(
        array(x),
        array(cos),
        array(sin),
        query_heads,
        key_heads,
        None if query_norm is None else array(query_norm),
        None if key_norm is None else array(key_norm),
        eps,
    )
    return x
