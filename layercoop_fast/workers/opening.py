"""From what a user writes as `workers` to workers."""

from __future__ import annotations

import os
from typing import Any

import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.workers.bounds import check_count, worker_bytes
from layercoop_fast.workers.dispatch import Transport, Workers


def describe_checkpoint(
    name: str, *, dtype: str | torch.dtype, device: str, trust_remote_code: bool, blocks: str | None
) -> dict[str, Any]:
    """How workers open a checkpoint: the arguments of `open_checkpoint` and `Skeleton`, ready for JSON.

    Raises `RequestError` for a device that workers cannot share.
    """
    if device not in ("cpu", "cuda"):
        raise RequestError(f"device={device} with workers=: ask for cpu, or cuda for a GPU each")
    return {
        "name": os.path.abspath(name) if os.path.exists(name) else name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "trust_remote_code": trust_remote_code,
        "blocks": blocks,
    }


def open_workers(
    workers: int | str, checkpoint: dict[str, Any], *, device: str = "cpu", tolerant: bool = False
) -> Workers:
    """Workers for a checkpoint; none is started before it is needed.

    Args:
        workers: a number of local processes, "ray" for the Ray cluster of this machine, "ray:HOST:PORT" for
            another.
        checkpoint: how the checkpoint is opened (`describe_checkpoint`).
        device: "cpu", or "cuda" for a GPU each.
        tolerant: accept machines that differ.

    Raises `RequestError` for anything else, a number below 1 or above what the machine has room for
    (`workers/bounds.py`; on GPUs the number of these), and a cluster that does not answer.
    """
    transport: Transport
    kind, _, address = str(workers).partition(":")
    if kind == "ray":
        from layercoop_fast.workers.ray_workers import RayActors  # here, since ray is an extra

        transport = RayActors(address or None, device=device, worker_bytes=worker_bytes(checkpoint))
    else:
        try:
            count = int(str(workers))
        except ValueError:
            raise RequestError(
                f"workers={workers} is not understood: give a number of local processes, ray, or ray:HOST:PORT"
            ) from None
        check_count(count, checkpoint)
        from layercoop_fast.workers.local import LocalProcesses  # here, since it loads torch

        transport = LocalProcesses(count, device=device)
    return Workers(transport, checkpoint, tolerant=tolerant)
