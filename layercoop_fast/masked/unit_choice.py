"""Which units compute a model's blocks: in a pool on a GPU, fast ones on the CPU, or the model's own modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import NATIVE_DTYPES
from layercoop_fast.llama.cpu_block import FastBlock, Workspace
from layercoop_fast.llama.fast_blocks import fast_block
from layercoop_fast.masked.pool_units import make_pool_units
from layercoop_fast.masked.queues import queue_of
from layercoop_fast.masked.units import FastUnits, GeneralUnits, Units
from layercoop_fast.masked.windows import Windows

BLOCK_PATHS = ("auto", "hf")
# Windows on which a fast block is compared with the block itself. All windows of a text have one length, so two of them
# show what every batch receives (for trees: what positions and masks of this kind look like).
_CHECK_WINDOWS = 2


def _stays_joined(skeleton: Skeleton, layer: int, fast: FastBlock) -> bool:
    """Whether a streamed block's joint weights are joint wherever it is read to, and are all its own."""
    if skeleton.streamed is None:
        return True
    skeleton.streamed.renew(layer)
    matrices = {name for name, parameter in skeleton.blocks[layer].named_parameters() if parameter.dim() > 1}
    return matrices == skeleton.streamed.within(layer) and fast.holds


def make_units(
    windows: Windows,
    run_unit: Callable[[Context, int, Tensor], Tensor] = Context.run,
    *,
    halves: bool = False,
    block_path: str = "auto",
) -> Units:
    """The units of a model's blocks for these windows: fast where that fits, unless `block_path` is "hf".

    Args:
        windows: of the game.
        run_unit: a unit by the model's own modules, [B, T, H] → [B, T, H].
        halves: whether units are the attention and MLP halves of blocks, in this order.
        block_path: "auto" or "hf".

    Raises `RequestError` for another block path.
    """
    if block_path not in BLOCK_PATHS:
        raise RequestError(f"unknown block path {block_path!r}: choose from {', '.join(BLOCK_PATHS)}")
    general = GeneralUnits(windows, run_unit, halves=halves)
    skeleton = windows.skeleton
    if block_path == "hf":
        return general
    if skeleton.device.type == "cuda":
        # Trees of texts, and models spread over devices, go by the model's own blocks there.
        whole = windows.positions is None and skeleton.one_device
        pooled = make_pool_units(windows, general, queue_of(skeleton.device), halves=halves) if whole else None
        return general if pooled is None else pooled
    # Some libraries (torchao) keep plain modules, whose weights are not plain memory.
    if skeleton.dtype not in NATIVE_DTYPES or is_quantised(skeleton.model):
        return general
    count = min(_CHECK_WINDOWS, windows.n_windows)
    context = windows.part(0, count)
    positions = None if windows.positions is None else windows.positions[:count]
    workspace = Workspace()
    skeleton.expect(range(skeleton.n_layers))
    blocks = []
    for layer in range(skeleton.n_layers):
        fast = fast_block(
            skeleton.block(layer),
            context.call(layer),
            skeleton.convention,
            workspace,
            positions,
            in_fp32=skeleton.streamed is None,  # beside two streamed blocks there may be no room for a copy
        )
        if fast is not None and windows.positions is not None:
            # Checked on the first windows, it goes on to all of them.
            fast.extend(windows.context(1).call(layer), skeleton.convention, windows.positions)
        blocks.append(fast if fast is None or _stays_joined(skeleton, layer, fast) else None)
    if skeleton.streamed is None:
        # Asked at the end: a block that shares weights with a later one has lost them to it.
        blocks = [block if block is not None and block.holds else None for block in blocks]
    return FastUnits(general, blocks, halves=halves) if any(blocks) else general
