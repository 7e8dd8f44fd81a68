"""A block's output back into the pool of states: added to its stream and written into its slot.

The formula is `scatter_residual_reference_` of `kernels/reference/blocks.py`. A target may be the source of its own row
(the state is updated in place), but neither the source nor the target of another row: rows are written in no order.
The plan guarantees this: at one layer a state continues in one way only. Slots outside the pool are not noticed.

Why not a library: index_add_ adds to what lies in the target, and by atomics; index_copy_ takes a sum that was written
before. A skipped block costs nothing: a state that passes it by keeps its slot.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, launch
from layercoop_fast.kernels.gpu.tuning import chosen

CONFIGS = {"wide": Config("wide", {"BLOCK": 2048}, warps=4), "narrow": Config("narrow", {"BLOCK": 512}, warps=1)}


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
