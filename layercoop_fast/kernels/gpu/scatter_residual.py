"""A block's output back into the pool of states: added to the stream it belongs to, in the slot that it goes to.

    pool[targets[b], t] = r + delta[b·T + t],    r = residual[b·T + t]  or  pool[sources[b], t]

pool: [S, T, H]; targets, sources: int32 or int64 [B]; delta, residual: [B·T, H]; fp32, bf16 or fp16, all alike. A
target may be its own row's source (the state is updated in place), but neither another row's source nor its target:
rows are written in no order. The plan sees to that: at one layer a state goes on in one way only. Slots outside the
pool are not noticed.

Why not a library: index_add_ adds to what lies in the target, and by atomics; index_copy_ takes a sum that was written
before. A skipped block costs nothing either way: a state that it passes by keeps its slot, and only an index says so.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.frame import Case, Config, blocks, launch, meta, require_index
from layercoop_fast.kernels.gpu.gather_norm import require_pool
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.memory import require, require_matrix

CONFIGS = {"wide": Config("wide", {"BLOCK": 2048}, warps=4), "narrow": Config("narrow", {"BLOCK": 512}, warps=1)}


def scatter_residual_reference(
    pool: Tensor, targets: Tensor, delta: Tensor, residual: Tensor | None, sources: Tensor | None
) -> Tensor:
    """The oracle: a new pool."""
    stream = residual.view(-1, *pool.shape[1:]) if residual is not None else pool[_given(sources).long()]
    return pool.index_copy(0, targets.long(), stream + delta.view_as(stream))


@triton.jit
def _scatter(pool, targets, delta, residual, sources, tokens, width, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // tl.cdiv(width, BLOCK)).to(tl.int64)
    column = tl.program_id(0) % tl.cdiv(width, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    state, token = row // tokens, row % tokens
    if residual is not None:
        stream = tl.load(residual + row * width + column, mask=inside)
    else:
        source = tl.load(sources + state).to(tl.int64) * tokens + token
        stream = tl.load(pool + source * width + column, mask=inside)
    added = stream.to(tl.float32) + tl.load(delta + row * width + column, mask=inside).to(tl.float32)
    target = tl.load(targets + state).to(tl.int64) * tokens + token
    tl.store(pool + target * width + column, added.to(stream.dtype), mask=inside)


def launch_scatter(
    pool: Tensor,
    targets: Tensor,
    delta: Tensor,
    *,
    residual: Tensor | None = None,
    sources: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """Write the rows of delta [B·T, H] plus their residuals into pool [S, T, H]."""
    rows, width = delta.shape
    config = config or chosen("scatter_residual", (width, rows > 64), CONFIGS, "wide" if width >= 2048 else "narrow")
    grid = (rows * blocks(width, config.blocks["BLOCK"]),)
    launch(_scatter, grid, pool, targets, delta, residual, sources, pool.shape[1], width, config=config)


@torch.library.custom_op("layercoop_fast::scatter_residual_", mutates_args=("pool",))
def scatter_residual_(
    pool: Tensor, targets: Tensor, delta: Tensor, residual: Tensor | None, sources: Tensor | None
) -> None:
    """Add delta to its residual, given as rows or by the slots where it lies, and write it into the target slots."""
    _check(pool, targets, delta, residual, sources)
    launch_scatter(pool, targets, delta, residual=residual, sources=sources)


@scatter_residual_.register_fake
def _check(pool: Tensor, targets: Tensor, delta: Tensor, residual: Tensor | None, sources: Tensor | None) -> None:
    require_pool(pool)
    require_index(targets, "targets", targets.shape[0], pool)
    shape = (targets.shape[0] * pool.shape[1], pool.shape[2])
    require_matrix(delta, "delta")
    require(delta, "delta", shape, pool)
    if (residual is None) == (sources is None):
        raise RequestError("residual, sources: expected one of the two")
    if residual is not None:
        require_matrix(residual, "residual")
        require(residual, "residual", shape, pool)
    else:
        require_index(_given(sources), "sources", targets.shape[0], pool)


def _given(sources: Tensor | None) -> Tensor:
    if sources is None:
        raise RequestError("residual, sources: expected one of the two")
    return sources


def cases() -> list[Case]:
    """A block's output for 128 windows of 128 tokens of an 8B llama, and one decoded token's."""
    found = []
    for batch, tokens, config in ((128, 128, "wide"), (1, 1, "wide")):
        width = 4096
        pool, slots, matrix = (
            meta(2 * batch, tokens, width),
            meta(batch, dtype=torch.int32),
            meta(batch * tokens, width),
        )
        run = partial(launch_scatter, pool, slots, matrix, sources=slots, config=CONFIGS[config])
        size = 2 * batch * tokens * width
        found.append(Case("scatter_residual", f"[{batch * tokens}, {width}]", config, run, bytes=3 * size))
    one, slots = meta(1, 1), meta(1, dtype=torch.int32)
    run = partial(launch_scatter, one[None], slots, one, residual=one, config=CONFIGS["narrow"])
    return [*found, Case("scatter_residual", "[1, 1]", "narrow", run, bytes=6, wide=False, main=False)]
