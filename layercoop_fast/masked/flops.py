"""How much arithmetic a unit and the head take, as torch counts it while the model's own modules run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from layercoop_fast.engine.skeleton import Context
from layercoop_fast.masked.windows import Windows


def count_flops(
    windows: Windows, n_units: int, run_unit: Callable[[Context, int, Tensor], Tensor] = Context.run
) -> tuple[NDArray[np.float64], float]:
    """FLOP of each unit on one state (`float64[U]`), and of the head on one.

    Matrix products and convolutions count (two FLOP a multiply-add), of experts those that run; attention does where it
    is made of products, and does not where torch runs it as one fused operation. One pass over one window is measured,
    and multiplied by the number of windows. Where blocks are streamed, those that are alike in class, shapes and
    arguments are counted once, so that few are read.
    """
    context = windows.part(0, 1)
    flops = np.empty(n_units)
    hidden = context.embedding
    counted: dict[object, int] = {}
    for unit in range(n_units):
        kind = unit if windows.skeleton.streamed is None else _kind(context, unit, n_units)
        if kind not in counted:
            with FlopCounterMode(display=False) as counter:
                hidden = run_unit(context, unit, hidden)
            counted[kind] = counter.get_total_flops()
        flops[unit] = counted[kind]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        context.logits(hidden)
    return flops * windows.n_windows, float(counter.get_total_flops() * windows.n_windows)


def _kind(context: Context, unit: int, n_units: int) -> object:
    """What units of equal FLOP have in common: which part of a block, its classes and shapes, and its arguments."""
    skeleton = context.skeleton
    layer, part = divmod(unit, n_units // skeleton.n_layers)
    block = skeleton.blocks[layer]
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
    return part, tuple(map(type, block.modules())), shapes, tuple(context.describe(layer))
