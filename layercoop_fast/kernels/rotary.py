"""Rotary position embedding on the queries and keys of a joint projection, with the per-head norm before it.

For each head h [D] of a row at position p:

    h = h · cos[p] + rotate_half(h) · sin[p],    rotate_half(h) = (−h[D/2:], h[:D/2])

and before that, where norm weights are given (QK-norm), h = rms_norm(h). A weight of D numbers norms each head by
itself, as in Qwen3; one of as many numbers as all query or all key heads have norms these together, as in OLMo 2.

x: [R, C], the heads first in a row (queries, then keys), other columns untouched; row r is at position r mod T. cos,
sin: [T, D], D even. fp32 or bf16, all alike; in bf16 every product and the sum are rounded, as Hugging Face's are. With
cosines and sines in fp32 and x in bf16, only the result is rounded.

Source: Su et al., RoFormer (arXiv 2104.09864), in the half-split form that Hugging Face's models use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, is_native, on_gpu, require, require_matrix
from layercoop_fast.kernels.rms_norm import rms_norm_reference


def rotary_reference(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_heads: int,
    key_heads: int,
    *,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    gemma: bool = False,
) -> Tensor:
    """The oracle: a new tensor [R, C]."""
    tokens, width = cos.shape
    half = width // 2
    positions = torch.arange(len(x), device=x.device) % tokens
    cos, sin = cos[positions, None], sin[positions, None]
    out = x.clone()
    for first, heads, weight in ((0, query_heads, query_norm), (query_heads, key_heads, key_norm)):
        columns = slice(first * width, (first + heads) * width)
        h = x[:, columns]
        if weight is not None:
            groups = h.reshape(len(x), heads * width // len(weight), len(weight))
            h = rms_norm_reference(groups, weight, eps, gemma=gemma)
        h = h.reshape(len(x), heads, width)
        turned = torch.cat([-h[..., half:], h[..., :half]], dim=-1)
        out[:, columns] = (h * cos + turned * sin).reshape(len(x), heads * width).to(x.dtype)
    return out


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
    gemma: bool = False,
) -> Tensor:
    """Rotate x [R, C] in place and return it; `gemma` says that the norms have Gemma's form (`rms_norm.py`)."""
    require_matrix(x, "x")
    require_matrix(cos, "cos")
    require_matrix(sin, "sin")
    tokens, width = cos.shape
    angles = x if cos.dtype == x.dtype else x.new_empty(0, dtype=torch.float32)
    require(cos, "cos", (tokens, width), angles)
    require(sin, "sin", (tokens, width), angles)
    if tokens < 1 or width < 2 or width % 2:
        raise RequestError(f"cos: expected [T, D] with T of at least 1 and D even, got {[tokens, width]}")
    if query_heads < 0 or key_heads < 0 or (query_heads + key_heads) * width > x.shape[1]:
        raise RequestError(f"x: {x.shape[1]} columns do not hold {query_heads} + {key_heads} heads of {width}")
    given = [(name, heads, weight) for name, heads, weight in (
        ("query_norm", query_heads, query_norm), ("key_norm", key_heads, key_norm)
    ) if weight is not None]  # fmt: skip
    joint = any(len(weight) != width for _, _, weight in given)
    for name, heads, weight in given:
        require(weight, name, (heads * width if joint else width,), x)
    if on_gpu(x) and not (joint or gemma or angles is not x):
        from layercoop_fast.kernels.gpu.rotary import launch_rotary

        launch_rotary(x, cos, sin, query_heads, key_heads, query_norm=query_norm, key_norm=key_norm, eps=eps)
        return x
    if not is_native(x):
        found = rotary_reference(
            x, cos, sin, query_heads, key_heads, query_norm=query_norm, key_norm=key_norm, eps=eps, gemma=gemma
        )
        return x.copy_(found)
    _C.rotary(
        array(x),
        array(cos),
        array(sin),
        query_heads,
        key_heads,
        None if query_norm is None else array(query_norm),
        None if key_norm is None else array(key_norm),
        eps,
        gemma,
        joint,
    )
    return x
