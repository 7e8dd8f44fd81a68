"""A worker that sleeps instead of computing: what `bench_driver.py` puts at the other end of the driver's sockets.

    python sleeping_worker.py SOCKET

It speaks the protocol of `layercoop_fast/workers/messages.py` and sends, every half second, numbers for as many masks
as a real worker would have measured by then. The order to open a game says how many unit evaluations it does a second
(0: as fast as it can), how many of those a head takes, and how many windows there are. Loads no torch.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from layercoop_fast.workers.messages import pack, unpack

STREAM_SECONDS = 0.5
# Rows of a message where nothing is waited for.
_MOST_ROWS = 512


def main() -> None:
    """Serve until the socket closes."""
    connection = Connection(int(sys.argv[-1]))
    rate, head_cost, n_windows = 0.0, 0.0, 0
    while True:
        try:
            message = unpack(connection.recv_bytes())
        except EOFError:
            return
        if message.kind == "open":
            rate, head_cost, n_windows = (message.about[name] for name in ("rate", "head_cost", "windows"))
            report = {"fingerprints": {"numerics": {}}, "machine": {"processor": "none", "gpu": "none"}, "host": "here"}
            connection.send_bytes(pack("ready", {**report, "states": 64}))
            continue
        evaluations = new_units(message.arrays["masks"])
        seconds = (evaluations + head_cost) / rate if rate else np.zeros(len(evaluations))
        ends = np.cumsum(seconds)
        first, began = 0, time.perf_counter()
        while first < len(ends):
            due = np.searchsorted(ends, (ends[first - 1] if first else 0.0) + STREAM_SECONDS, side="right")
            last = min(max(int(due), first + 1), len(ends)) if rate else min(first + _MOST_ROWS, len(ends))
            time.sleep(max(0.0, began + float(ends[last - 1]) - time.perf_counter()))
            rows = np.arange(first, last)
            nll = np.random.default_rng(first).random((len(rows), n_windows))
            about = {"evaluations": int(evaluations[first:last].sum()), "finished": last == len(ends)}
            connection.send_bytes(pack("rows", about, rows=rows, nll=nll, kl=np.full_like(nll, np.nan)))
            first = last


def new_units(masks: np.ndarray) -> np.ndarray:
    """Units that each mask runs beyond those of the mask before it: sorted masks bool [M, U] → int64 [M]."""
    found = masks.sum(axis=1)
    first_difference = (masks[1:] != masks[:-1]).argmax(axis=1)
    found[1:] -= (masks[1:] & (np.arange(masks.shape[1]) < first_difference[:, None])).sum(axis=1)
    return found


if __name__ == "__main__":
    main()
