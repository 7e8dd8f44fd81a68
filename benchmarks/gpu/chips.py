"""What a chip can do on paper, by its name, and what is timed against that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Peak:
    """A second: bytes from memory, FLOP of dense 16-bit products, and of plain fp32; as the makers state them."""

    bandwidth: float
    flops: float
    plain: float


# The first name that the device's holds; the more particular stand first.
PEAKS = {
    "H100 PCIe": Peak(2.0e12, 756e12, 51e12),
    "H100 NVL": Peak(3.9e12, 835e12, 60e12),
    "H100": Peak(3.35e12, 989e12, 67e12),
    "H200": Peak(4.8e12, 989e12, 67e12),
    "B200": Peak(8.0e12, 2250e12, 75e12),
    "A100-PCIE-40GB": Peak(1.555e12, 312e12, 19.5e12),
    "A100-SXM4-40GB": Peak(1.555e12, 312e12, 19.5e12),
    "A100": Peak(2.0e12, 312e12, 19.5e12),
    "L40S": Peak(0.864e12, 362e12, 91.6e12),
    "RTX 4090": Peak(1.008e12, 165e12, 82.6e12),
    "MI300X": Peak(5.3e12, 1307e12, 163.4e12),
}


@dataclass(frozen=True)
class Bench:
    """What a part needs to know.

    Attributes:
        device: the GPU; the CPU for --tiny.
        dtype: of models and kernels.
        peak: of the chip; None where it is not in the table.
        compiler: backend of torch.compile; None: the function as it is.
        tiny: sizes that mean nothing.
        long: also what takes minutes.
    """

    device: torch.device
    dtype: torch.dtype
    peak: Peak | None
    compiler: str | None
    tiny: bool
    long: bool

    @classmethod
    def here(cls, *, tiny: bool, long: bool) -> Bench:
        """On the GPU that is there, or for --tiny on the CPU."""
        if tiny:
            return cls(torch.device("cpu"), torch.float32, None, None, tiny, long)
        device = torch.device("cuda", torch.cuda.current_device())
        return cls(device, torch.bfloat16, peak_of(torch.cuda.get_device_name()), "inductor", tiny, long)


def raise_again(problem: Exception) -> dict[str, Any]:
    """What measures a row that could not be made: it fails as the making did."""
    raise problem


def peak_of(name: str) -> Peak | None:
    """The peak of a device, or None where it is not in the table; shares of the peak are then left out."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of a call between events of the GPU, after some that are not counted, the L2 cache cleared."""
    if not torch.cuda.is_available():  # --tiny: that it runs is all there is to see
        return wall(work)
    from triton.testing import do_bench

    work()
    return float(do_bench(work, return_mode="median")) / 1e3


def wall(work: Callable[[], object]) -> float:
    """Seconds until a call's work is done on the device too."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
