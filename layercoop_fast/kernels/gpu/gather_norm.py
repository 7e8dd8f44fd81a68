"""A block's norm, on states that lie anywhere in the pool: selected by an index table, normed, written in a row.

The formulas are `gather_norm_reference` and `rms_norm_reference` of `kernels/reference/blocks.py`; sums are fp32. With
a delta the sum x is an output too: the second half of the block is added to it. A slot outside the pool is not noticed:
reading the table on the host would make it wait for the device.

Why not a library: torch and Liger norm a tensor that lies in a row. States that masks share do not, and copying them
together first would move as many bytes again as the norm itself.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.frame import Config, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen

# A row is held in registers.
WIDEST = 32768

CONFIGS = {"short": Config("short", warps=1), "row": Config("row", warps=4), "long": Config("long", warps=16)}


@triton.jit
def _norm(
    pool, slots, delta, keep, weight, total, out, tokens, width, eps, BLOCK: tl.constexpr, GEMMA: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source = row
    if slots is not None:
        source = tl.load(slots + row // tokens).to(tl.int64) * tokens + row % tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(pool + source * width + column, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        added = tl.load(delta + row * width + column, mask=inside, other=0.0).to(tl.float32)
        x += added if keep is None else tl.where(tl.load(keep + row) != 0, added, 0.0)
        rounded = x.to(out.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    unit = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed = unit * (1 + w) if GEMMA else w * unit.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=inside)


def launch_norm(
    pool: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    slots: Tensor | None = None,
    delta: Tensor | None = None,
    keep: Tensor | None = None,
    total: Tensor | None = None,
    gemma: bool = False,
    config: Config | None = None,
) -> None:
    """Fill out [R, H], and with a delta total [R, H], from pool [S, T, H] or, without slots, from pool [R, H].

    With `keep` int32 [R] the delta is added to the rows where that is not 0.
    """
    rows, width = out.shape
    if width > WIDEST:
        raise RequestError(f"states of {width} numbers are wider than the {WIDEST} that a GPU kernel norms")
    tokens = pool.shape[1] if slots is not None else 1
    rule = "short" if width <= 1024 else "row" if width <= 8192 else "long"
    config = config or chosen("norm", (width, delta is not None), CONFIGS, rule)
    launch(
        _norm, (rows,), pool, slots, delta, keep, weight, total, out, tokens, width, eps, config=config,
        BLOCK=power_of_two(width), GEMMA=gemma,
    )  # fmt: skip
