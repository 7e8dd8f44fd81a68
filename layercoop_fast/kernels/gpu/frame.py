"""What the kernels share: configurations, launching, and recording of launches.

A launch has a *configuration*: block sizes, warps and stages under a name. The launcher chooses it by a rule, unless
tuning on this device found a faster one (`tuning.py`).

While launches are recorded, nothing runs: tensors may be on the meta device, and the record is exactly what would have
been specialised and compiled (`tests/support/ahead_of_time.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

# Programs that fill a chip: two for each of an H100's processors. It is the same on all chips, since sums depend on it.
PROGRAMS = 264


@dataclass(frozen=True)
class Config:
    """One way to split a kernel's work: sizes of blocks (powers of two, constants of the kernel), warps, stages."""

    name: str
    blocks: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and everything that it is specialised on."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    config: Config


_recorded: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, config: Config, **constants: Any) -> None:
    """Run a kernel: `arguments` are its parameters in order, `constants` and the config's blocks its `tl.constexpr`.

    Nothing runs for an empty grid.
    """
    constants = {**config.blocks, **constants}
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, constants, config))
        return
    if 0 in grid:
        return
    # Triton launches on the current device, which need not be the tensors' where there are several.
    first = next(each for each in arguments if isinstance(each, Tensor))
    with torch.cuda.device(first.device) if first.device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect launches instead of running them."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def recording() -> bool:
    """Whether launches are collected, so that nothing runs."""
    return _recorded is not None


def blocks(size: int, block: int) -> int:
    """The number of blocks that cover a size."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least a size (1 for 0)."""
    return 1 << max(size - 1, 0).bit_length()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1, set before Triton is imported)."""
    return bool(triton.knobs.runtime.interpret)
