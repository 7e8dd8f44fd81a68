"""Whether a Triton kernel is right on the device at hand: asked once of each, before its first result is used.

    if by_kernel("rotary", x):
        launch_rotary(...)      # the kernel, which agreed with its oracle here
    else:
        ...                     # torch's operations

A kernel is compiled for a chip that its authors may never have had, by a compiler that they did not choose. So the
first use of an operation on a device in a dtype runs a small case (`gpu/cases.py`), compares it with the operation's
oracle on the CPU, and keeps the verdict for the process. A kernel that raises or disagrees is not used: torch's own
operations compute the formula, and one warning says so. `kernels_used` names what runs, for fingerprints; `doctor`
prints `checks_of`.

A kernel that touches memory it does not own may end the process's use of the device, which no check can undo.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layercoop_fast.files import reason
from layercoop_fast.kernels.memory import has_triton, on_gpu

if TYPE_CHECKING:
    from layercoop_fast.kernels.gpu.cases import CheckCase

# What masks are measured by, and what is only generated or estimated by.
MEASURING = ("norm", "scatter_residual", "rotary", "gated", "linear_cross_entropy")
GENERATING = ("quantised_linear", "paged_attention", "decode_attention")
ESTIMATING = ("surrogate", "enumeration")
OPERATIONS = (*MEASURING, *GENERATING, *ESTIMATING)


@dataclass(frozen=True)
class Check:
    """What was found when a kernel was first used.

    Attributes:
        operation: one of `OPERATIONS`.
        device: such as "cuda:0".
        dtype: such as "bfloat16".
        difference: of the kernel from its oracle, as a share of the oracle's largest number; None where it raised.
        allowed: the largest difference that is allowed.
        error: what it raised, in one line; None where it came to a result.
    """

    operation: str
    device: str
    dtype: str
    difference: float | None
    allowed: float
    error: str | None

    @property
    def sound(self) -> bool:
        """Whether the kernel is used."""
        return self.error is None and self.difference is not None and self.difference <= self.allowed

    @property
    def problem(self) -> str | None:
        """What is wrong, in one line; None where nothing is."""
        if self.sound:
            return None
        if self.error is not None:
            return self.error
        return f"off by {self.difference:.1e} of the largest number, {self.allowed:.0e} allowed"


_checks: dict[tuple[str, torch.device, torch.dtype], Check] = {}
_lock = threading.RLock()


def by_kernel(operation: str, tensor: Tensor) -> bool:
    """Whether an operation on a tensor [...] is a Triton kernel's: a GPU's tensor, and the kernel is right there."""
    return on_gpu(tensor) and sound(operation, tensor.device, tensor.dtype)


def sound(operation: str, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether an operation's kernel is right on a device in a dtype; checked where it was not yet."""
    found = _checks.get((operation, device, dtype))
    return (found or check(operation, device, dtype)).sound


def check(operation: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Check:
    """Run an operation's small case on a device, compare, and remember; a warning where the kernel will not be used.

    Raises `torch.OutOfMemoryError` where the device has no room for it.
    """
    with _lock:
        known = _checks.get((operation, device, dtype))
        if known is not None:
            return known
        found = _compared(operation, device, dtype)
        _checks[operation, device, dtype] = found
    if found.problem is not None:
        warnings.warn(
            f"{operation}: the Triton kernel is not used on {found.device} in {found.dtype}, torch's own operations "
            f"are, which are slower: {found.problem}",
            stacklevel=3,
        )
    return found


def _compared(operation: str, device: torch.device, dtype: torch.dtype) -> Check:
    from layercoop_fast.kernels.gpu import cases
    from layercoop_fast.kernels.gpu.frame import recording

    allowed = cases.TOLERANCE[dtype]
    at = (operation, str(device), str(dtype).removeprefix("torch."))
    if recording():  # nothing runs
        return Check(*at, 0.0, allowed, None)
    make: Callable[[torch.device, torch.dtype], list[CheckCase]] = cases.CASES[operation]
    worst = 0.0
    try:
        with torch.inference_mode():
            for case in make(device, dtype):
                worst = max(worst, case.difference())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a driver raises
        return Check(*at, None, allowed, f"{type(error).__name__}: {reason(error)}")
    return Check(*at, worst, allowed, None)


def checks_of(device: torch.device, dtype: torch.dtype) -> list[Check]:
    """The checks of all operations on a GPU; those of networks over masks are in fp32."""
    if not has_triton():
        return []
    return [check(name, device, torch.float32 if name in ESTIMATING else dtype) for name in OPERATIONS]


def kernels_used(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Of each operation that measures masks, who computes it on a GPU: "triton" or "torch"."""
    fits = on_gpu(torch.empty(0, dtype=dtype, device=device))
    return {name: "triton" if fits and sound(name, device, dtype) else "torch" for name in MEASURING}
