"""Causal attention inside short windows, on the joint projection of queries, keys and values.

The formula is `causal_attention_reference` of `reference/attention.py`; on fp32 and bf16 in the memory of the CPU the
core computes it. Scores, softmax and sums are fp32; only the result is rounded. A row has the same bits whatever other
rows are asked for, and a row of a tree has the bits that it has where its text stands alone.

Keys and values of one head of a window are held in fp32 (8·T·D bytes a thread; of a tree 8·D for each position). The
core is made for windows that fit a processor's cache (T·D up to some 10⁵); it was seen to be faster than torch's own
attention up to 4,096 tokens (docs/performance.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, is_native, require, require_matrix
from layercoop_fast.kernels.reference.attention import causal_attention_reference, causal_attention_slopes_reference


def causal_attention(
    qkv: Tensor,
    tokens: int,
    heads: int,
    kv_heads: int,
    scale: float,
    *,
    asked: Tensor | None = None,
    positions: Tensor | None = None,
    sliding_window: int = 0,
    cap: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Attend inside each window, or along the branches of its tree: [W·T, (heads + 2·kv_heads)·D] → [W·T, heads·D].

    Args:
        qkv: a row's query heads, then its key heads, then its value heads, rotated.
        tokens: T, rows of a window.
        heads: number of query heads.
        kv_heads: number of key heads, a divisor of `heads`.
        scale: of the products.
        asked: int64 [S], ascending tokens of a window: only these attend, and the result is [W·S, heads·D]. Queries of
            other tokens are not read. None: all tokens.
        positions: int64 [P], P a multiple of T: windows are trees (see `visible_rows`), and row r stands at
            positions[r mod P]. A window begins at 0, and no row stands more than one position beyond the row before it.
        sliding_window: how many tokens a token sees, itself included; 0: all before it.
        cap: soft cap of the scores; 0: none.
        out: where the result goes.

    Raises:
        RequestError: for shapes, dtypes and numbers that do not fit.
    """
    width = _width(qkv, tokens, heads, kv_heads)
    rows = len(qkv)
    _check_scale(scale)
    if sliding_window < 0 or not 0 <= cap < math.inf:
        raise RequestError(
            f"sliding_window, cap: expected numbers from 0 on, 0 for none, got {sliding_window} and {cap}"
        )
    asked = torch.arange(tokens) if asked is None else _checked(asked, tokens)
    if positions is not None:
        _check_positions(positions, rows, tokens)
    shape = (rows // tokens * len(asked), heads * width)
    if out is None:
        out = qkv.new_empty(shape)
    require_matrix(out, "out")
    require(out, "out", shape, qkv)
    if not is_native(qkv):
        mixed = causal_attention_reference(
            qkv, tokens, heads, kv_heads, scale, positions, sliding_window=sliding_window, cap=cap
        )
        return out.copy_(mixed.view(-1, tokens, shape[1])[:, asked.to(qkv.device)].reshape(shape))
    where, some = None if positions is None else positions.numpy(), asked.contiguous().numpy()
    _C.causal_attention(array(qkv), tokens, heads, kv_heads, scale, some, array(out), where, sliding_window, cap)
    return out


@torch.no_grad()
def causal_attention_slopes(
    slope: Tensor, qkv: Tensor, mixed: Tensor, tokens: int, heads: int, kv_heads: int, scale: float
) -> Tensor:
    """The gradient of `causal_attention` for qkv [W·T, (heads + 2·kv_heads)·D], from a slope of its result.

    The formula is `causal_attention_slopes_reference`. Scores, softmax and sums are fp32, and only the result is
    rounded. A window's slopes have the same bits whatever other windows there are.

    Args:
        slope: [W·T, heads·D].
        qkv: as `causal_attention` takes it.
        mixed: its result for all tokens, [W·T, heads·D].
        tokens: T, rows of a window.
        heads: number of query heads.
        kv_heads: number of key heads.
        scale: of the products.

    Raises:
        RequestError: for shapes and dtypes that do not fit, and a scale that is not positive.
    """
    width = _width(qkv, tokens, heads, kv_heads)
    _check_scale(scale)
    for given, name in ((slope, "slope"), (mixed, "mixed")):
        require_matrix(given, name)
        require(given, name, (len(qkv), heads * width), qkv)
    if not is_native(qkv):
        return causal_attention_slopes_reference(slope, qkv, mixed, tokens, heads, kv_heads, scale)
    out = torch.empty_like(qkv)
    _C.causal_attention_slopes(array(slope), array(qkv), array(mixed), tokens, heads, kv_heads, scale, array(out))
    return out


def _check_scale(scale: float) -> None:
    if not (scale > 0 and math.isfinite(scale)):
        raise RequestError(f"scale: {scale} is not a positive number")


def _width(qkv: Tensor, tokens: int, heads: int, kv_heads: int) -> int:
    """Columns of a head. Raises `RequestError` for rows that are no windows, and columns that are not these heads."""
    require_matrix(qkv, "qkv")
    rows, columns = qkv.shape
    groups = heads + 2 * kv_heads
    if tokens < 1 or rows % tokens:
        raise RequestError(f"qkv: {rows} rows are not windows of {tokens} tokens")
    if min(heads, kv_heads) < 1 or heads % kv_heads or columns % groups or columns == 0:
        raise RequestError(f"qkv: {columns} columns are not {heads} + 2 x {kv_heads} heads of one width")
    return columns // groups


def _checked(asked: Tensor, tokens: int) -> Tensor:
    if asked.dim() != 1 or asked.dtype != torch.int64:
        raise RequestError(f"asked: expected int64 tokens [S], got {asked.dtype} {list(asked.shape)}")
    if len(asked) and (int(asked[0]) < 0 or int(asked[-1]) >= tokens or bool((asked.diff() <= 0).any())):
        raise RequestError(f"asked: expected ascending tokens of a window, from 0 to {tokens - 1}")
    return asked


def _check_positions(positions: Tensor, rows: int, tokens: int) -> None:
    if positions.dtype != torch.int64 or positions.dim() != 1 or not positions.is_contiguous():
        raise RequestError(f"positions: expected contiguous int64 [P], got {positions.dtype} {list(positions.shape)}")
    if len(positions) == 0 or len(positions) % tokens or rows % len(positions):
        raise RequestError(f"positions: {len(positions)} are not those of windows of {tokens} tokens in {rows} rows")
    by_window = positions.view(-1, tokens)
    if (by_window[:, 0] != 0).any() or (by_window < 0).any() or (by_window.diff(dim=1) > 1).any():
        raise RequestError(
            "positions: a window begins at 0 and goes on by one position at most, or back to an earlier one"
        )
