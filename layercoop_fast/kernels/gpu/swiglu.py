"""The gate of a gated MLP, on the joint projection of gate and up: silu (llama) or the tanh form of GELU (Gemma).

The formulas are `swiglu_reference` and `geglu_reference` of `kernels/reference/blocks.py`. The activation is computed
in fp32 and rounded to the dtype before it is multiplied, as in the MLPs of transformers.

Why not a library: torch would run two kernels with a third tensor [R, I] between them. Liger-Kernel has the same
operation for silu alone (`LigerFusedGateUpSiLUMulFunction`, one program a row); its others take gate and up as two
tensors, so that the joint projection would have to be copied. torch.compile makes the same loop; this one needs no
compilation in the executor's process and can be captured in its graphs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, launch
from layercoop_fast.kernels.gpu.tuning import chosen

# 8 elements of a thread are one 128-bit load of 16-bit numbers; AMD's warps have 64 threads.
CONFIGS = {"wide": Config("wide", {"BLOCK": 2048}, warps=4), "narrow": Config("narrow", {"BLOCK": 512}, warps=1)}


@triton.jit
def _gated(gate_up, out, width, BLOCK: tl.constexpr, GELU: tl.constexpr):
    row = (tl.program_id(0) // tl.cdiv(width, BLOCK)).to(tl.int64)
    column = tl.program_id(0) % tl.cdiv(width, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside)
    if GELU:
        # (1 + tanh y) / 2 = 1 / (1 + exp(−2y)), which neither cancels nor has an infinity that hurts.
        activated = gate / (1 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    else:
        activated = gate / (1 + tl.exp(-gate))
    product = activated.to(up.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=inside)


def launch_gated(gate_up: Tensor, out: Tensor, *, gelu: bool, config: Config | None = None) -> None:
    """Fill out [R, I] from gate_up [R, 2I]."""
    rows, width = out.shape
    config = config or chosen("gated", (width, rows > 64), CONFIGS, "wide" if rows > 64 else "narrow")
    launch(_gated, (rows * blocks(width, config.blocks["BLOCK"]),), gate_up, out, width, config=config, GELU=gelu)
