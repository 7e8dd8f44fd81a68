"""States in a pool, picked and written by index tables: what stands before and behind the products of a block.

    x[b·T + t]         = pool[slots[b], t]  (+ delta[b·T + t])            normed: the RMS norm of its rows
    pool[targets[b]]   = residual + delta                                 or pool[sources[b]] + delta

pool: [S, T, H]; slots, sources, targets: int32 [B]; weight: [H]; delta, residual: [B·T, H]. A target may be its own
row's source, but neither another row's source nor its target.

On a GPU these are single kernels (`gpu/gather_norm.py`, `gpu/scatter_residual.py`); elsewhere what follows, in torch.
"""

from __future__ import annotations

from torch import Tensor

from layercoop_fast.kernels.memory import on_gpu
from layercoop_fast.kernels.rms_norm import rms_norm_reference


def gather_norm(pool: Tensor, slots: Tensor, weight: Tensor, eps: float, *, gemma: bool = False) -> Tensor:
    """The norm of the picked states: [B·T, H]."""
    if on_gpu(pool):
        from layercoop_fast.kernels.gpu.gather_norm import gather_norm as operation

        normed: Tensor = operation(pool, slots, weight, None, eps, "rms_gemma" if gemma else "rms")
        return normed
    return rms_norm_reference(pool[slots.long()].flatten(0, 1), weight, eps, gemma=gemma)


def gather_add_norm(
    pool: Tensor, slots: Tensor, delta: Tensor, weight: Tensor, eps: float, *, gemma: bool = False
) -> tuple[Tensor, Tensor]:
    """The picked states plus delta, and the norm of that: both [B·T, H]."""
    if on_gpu(pool):
        from layercoop_fast.kernels.gpu.gather_norm import gather_add_norm as operation

        total, normed = operation(pool, slots, delta, weight, None, eps, "rms_gemma" if gemma else "rms")
        return total, normed
    total = pool[slots.long()].flatten(0, 1) + delta
    return total, rms_norm_reference(total, weight, eps, gemma=gemma)


def scatter_residual_(
    pool: Tensor, targets: Tensor, delta: Tensor, *, residual: Tensor | None = None, sources: Tensor | None = None
) -> None:
    """Write residual + delta, or the states in `sources` + delta, into the target slots; one of the two is given."""
    if on_gpu(pool):
        from layercoop_fast.kernels.gpu.scatter_residual import scatter_residual_ as operation

        operation(pool, targets, delta, residual, sources)
        return
    stream = pool[sources.long()] if sources is not None else residual
    assert stream is not None
    states = (-1, *pool.shape[1:])
    pool.index_copy_(0, targets.long(), stream.view(states) + delta.view(states))
