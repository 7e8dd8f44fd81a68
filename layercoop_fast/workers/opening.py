"""`--workers`: from what the user writes to workers."""

from __future__ import annotations

from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.workers.bounds import check_count, worker_bytes
from layercoop_fast.workers.dispatch import Transport, Workers


def hire(workers: int | str, checkpoint: dict[str, Any], *, device: str = "cpu", tolerant: bool = False) -> Workers:
    """Workers for a game on a checkpoint; none is started before it is needed.

    Args:
        workers: a number of local processes, "ray" for the Ray cluster of this machine, "ray:HOST:PORT" for
            another.
        checkpoint: how the checkpoint is opened (`Workers`).
        device: "cpu", or "cuda" for a GPU each.
        tolerant: take unlike machines.

    Raises `RequestError` for anything else, a number below 1 or beyond what the machine has room for
    (`workers/bounds.py`; of GPUs as many as there are), and a cluster that is not there.
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
                f"--workers {workers!r} is not understood: give a number of local processes, ray, or ray:HOST:PORT"
            ) from None
        check_count(count, checkpoint)
        from layercoop_fast.workers.local import LocalProcesses  # here, since it loads torch

        transport = LocalProcesses(count, device=device)
    return Workers(transport, checkpoint, tolerant=tolerant)
