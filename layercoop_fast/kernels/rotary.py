"""Rotary position embedding on the queries and keys of a joint projection, in place, with QK-norm before it.

The formula is `rotary_reference` of `reference/blocks.py`. The Triton kernel has llama's norms of single heads alone;
for other norms, and for tables in fp32 next to 16-bit states, a GPU computes the formula in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.memory import array, is_native, require, require_index, require_matrix
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.reference.blocks import NO_NORMS, HeadNorms, rotary_reference


def rotary_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_heads: int,
    key_heads: int,
    norms: HeadNorms = NO_NORMS,
    into: PagePlaces | None = None,
) -> Tensor:
    """Rotate x [R, C] in place and return it.

    Args:
        x: rows of query heads, then key heads, then other columns, which are not touched. Row r is at position r mod T.
        cos: [T, D], D even; the dtype of x, or fp32.
        sin: [T, D].
        query_heads: their number.
        key_heads: their number.
        norms: of the heads before they are rotated.
        into: where the rotated keys, and the values behind them, are written too; C is then all of these heads.

    Raises:
        RequestError: for shapes and dtypes that do not fit.
    """
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
    weights = [("query", query_heads, norms.query), ("key", key_heads, norms.key)]
    given = [(f"{kind}_norm", heads, weight) for kind, heads, weight in weights if weight is not None]
    joint = any(len(weight) != width for _, _, weight in given)
    for name, heads, weight in given:
        require(weight, name, (heads * width if joint else width,), x)
    if into is not None:
        _check_places(into, x, query_heads, key_heads, width)
    if not (joint or norms.gemma or angles is not x) and by_kernel("rotary", x):
        from layercoop_fast.kernels.gpu.rotary import launch_rotary

        launch_rotary(x, cos, sin, query_heads, key_heads, norms, into)
        return x
    if into is not None:
        rotary_(x, cos, sin, query_heads, key_heads, norms)
        into.write_(x)
        return x
    if not is_native(x):
        return x.copy_(rotary_reference(x, cos, sin, query_heads, key_heads, norms))
    query, key = (None if weight is None else array(weight) for weight in (norms.query, norms.key))
    _C.rotary(array(x), array(cos), array(sin), query_heads, key_heads, query, key, norms.eps, norms.gemma, joint)
    return x


def _check_places(into: PagePlaces, x: Tensor, query_heads: int, key_heads: int, width: int) -> None:
    pages = into.pages
    if pages.dim() != 5 or pages.shape[1:3] != (2, key_heads) or pages.shape[4] != width or not pages.is_contiguous():
        raise RequestError(f"pages: expected contiguous [P, 2, {key_heads}, PAGE, {width}], got {list(pages.shape)}")
    if pages.dtype != x.dtype or pages.device != x.device:
        raise RequestError(f"pages: expected {x.dtype} on {x.device}, got {pages.dtype} on {pages.device}")
    if x.shape[1] != (query_heads + 2 * key_heads) * width:
        raise RequestError(f"x: {x.shape[1]} columns are not {query_heads} + 2 · {key_heads} heads of {width}")
    require_index(into.page, "page", len(x), x)
    require_index(into.slot, "slot", len(x), x)
