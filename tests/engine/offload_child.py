"""Play a model whose blocks are read from files under a limit of memory: run by `test_offload_memory.py`, in a process.

Arguments: the checkpoint folder; bytes that may be allocated beyond what import leaves. Prints one JSON line.
"""

from __future__ import annotations

import json
import resource
import sys
import threading

import numpy as np
import torch

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.texts.calibration import Calibration


def status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    folder, room = sys.argv[1], int(sys.argv[2])
    import transformers.models.llama.modeling_llama  # noqa: F401 - loaded at first use otherwise, and counted then

    data, anonymous = status("VmData"), status("RssAnon")
    resource.setrlimit(resource.RLIMIT_DATA, (data + room, data + room))
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, status("RssAnon") - anonymous)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        checkpoint = open_checkpoint(folder, offload=True)
        ids = torch.arange(3, 35).view(2, 16)
        game = ModelGame(checkpoint, Calibration(ids, "test"), memory=2**20)
        measured = game.evaluate(np.random.default_rng(0).random((20, game.n_players)) < 0.8)
        path = game.masked.units.path
    finally:
        over.set()
        watcher.join()
    print(
        json.dumps(
            {
                "limit": data + room,
                "peak": peak,
                "nll": measured.nll.tolist(),
                "read": game.masked.weights_read,
                "path": path,
            }
        )
    )


if __name__ == "__main__":
    main()
