"""What a GPU was found to do right: its kernels and its graphs, for `layercoop-fast doctor` on a device."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from layercoop_fast.kernels.checks import checks_of
from layercoop_fast.kernels.memory import has_triton
from layercoop_fast.masked.queues import CudaQueue, queue_of


def check_gpu(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Every kernel against its oracle in a dtype, and graphs by a capture, a replay and another capture.

    `kernels` are `kernels.checks.Check`s with a `problem`, None where the kernel is used; empty without Triton, when
    torch's operations compute everything. `graphs` is why there are none, None where they work.
    """
    queue = queue_of(device)
    checks = checks_of(device, dtype)
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "triton": has_triton(),
        "kernels": [{**asdict(each), "problem": each.problem} for each in checks],
        "graphs": queue.graphs.check() if isinstance(queue, CudaQueue) else "the device has none",
    }
