"""States in a pool, read and written by index tables: what surrounds the products of a block.

The formulas are `gather_norm_reference` and `scatter_residual_reference_` of `reference/blocks.py`. On a GPU each is
one kernel (`gpu/gather_norm.py`, `gpu/scatter_residual.py`). Slots outside the pool are not noticed there: reading the
table would make the host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import by_kernel
from layercoop_fast.kernels.memory import require, require_index, require_matrix
from layercoop_fast.kernels.reference.blocks import gather_norm_reference, scatter_residual_reference_


def gather_norm(pool: Tensor, slots: Tensor, weight: Tensor, eps: float, *, gemma: bool = False) -> Tensor:
    """The norm of the states in `slots` (int32 or int64 [B]) of pool [S, T, H]: [B·T, H]. `weight`: [H]."""
    rows = _check(pool, slots, weight)
    if not by_kernel("norm", pool):
        return gather_norm_reference(pool, slots, weight, eps, gemma=gemma)[1]
    from layercoop_fast.kernels.gpu.gather_norm import launch_norm

    out = pool.new_empty(rows)
    launch_norm(pool, weight, eps, out, slots=slots, gemma=gemma)
    return out


def gather_add_norm(
    pool: Tensor, slots: Tensor, delta: Tensor, weight: Tensor, eps: float, *, gemma: bool = False
) -> tuple[Tensor, Tensor]:
    """The states in `slots` plus delta [B·T, H], and the norm of that: both [B·T, H]."""
    rows = _check(pool, slots, weight)
    require_matrix(delta, "delta")
    require(delta, "delta", rows, pool)
    if not by_kernel("norm", pool):
        return gather_norm_reference(pool, slots, weight, eps, delta, gemma=gemma)
    from layercoop_fast.kernels.gpu.gather_norm import launch_norm

    total, out = torch.empty_like(delta), torch.empty_like(delta)
    launch_norm(pool, weight, eps, out, slots=slots, delta=delta, total=total, gemma=gemma)
    return total, out


def scatter_residual_(
    pool: Tensor, targets: Tensor, delta: Tensor, *, residual: Tensor | None = None, sources: Tensor | None = None
) -> None:
    """Write residual + delta (both [B·T, H]), or the states in slots `sources` + delta, into slots `targets` of pool.

    pool: [S, T, H]; targets, sources: int32 or int64 [B]; one of residual and sources is given.
    """
    _require_pool(pool)
    require_index(targets, "targets", len(targets), pool)
    rows = (len(targets) * pool.shape[1], pool.shape[2])
    require_matrix(delta, "delta")
    require(delta, "delta", rows, pool)
    if (residual is None) == (sources is None):
        raise RequestError("residual, sources: expected one of the two")
    if residual is not None:
        require_matrix(residual, "residual")
        require(residual, "residual", rows, pool)
    if sources is not None:
        require_index(sources, "sources", len(targets), pool)
    if not by_kernel("scatter_residual", pool):
        scatter_residual_reference_(pool, targets, delta, residual=residual, sources=sources)
        return
    from layercoop_fast.kernels.gpu.scatter_residual import launch_scatter

    launch_scatter(pool, targets, delta, residual=residual, sources=sources)


def _check(pool: Tensor, slots: Tensor, weight: Tensor) -> tuple[int, int]:
    """The shape of the rows picked."""
    _require_pool(pool)
    require_index(slots, "slots", len(slots), pool)
    require(weight, "weight", (pool.shape[2],), pool)
    return len(slots) * pool.shape[1], pool.shape[2]


def _require_pool(pool: Tensor) -> None:
    if pool.dim() != 3 or not pool.is_contiguous() or 0 in pool.shape[1:]:
        raise RequestError(f"pool: expected contiguous [slots, tokens, hidden], got {list(pool.shape)}")
