"""A worker that sleeps instead of computing: what `bench_driver.py` puts at the other end of the driver's sockets.

    python sleeping_worker.py SOCKET

It speaks the protocol of `layercoop_fast/workers/messages.py` and sends, every half second, numbers for as many masks
as a real worker would have measured by then. The order to open a game says how many a second (0: as fast as it can) and
how many windows. Loads no torch.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from layercoop_fast.workers.messages import pack, unpack

STREAM_SECONDS = 0.5


def main() -> None:
    """Serve until the socket closes."""
    connection = Connection(int(sys.argv[-1]))
    rate, n_windows = 0.0, 0
    while True:
        try:
            message = unpack(connection.recv_bytes())
        except EOFError:
            return
        if message.kind == "open":
            rate, n_windows = message.about["rate"], message.about["windows"]
            report = {"fingerprints": {"numerics": {}}, "machine": {"processor": "none", "gpu": "none"}, "host": "here"}
            connection.send_bytes(pack("ready", {**report, "states": 64}))
            continue
        n_masks = len(message.arrays["masks"])
        most = max(1, int(rate * STREAM_SECONDS)) if rate else 512
        for first in range(0, n_masks, most):
            rows = np.arange(first, min(first + most, n_masks))
            if rate:
                time.sleep(len(rows) / rate)
            nll = np.random.default_rng(first).random((len(rows), n_windows))
            about = {"evaluations": 40 * len(rows), "finished": bool(rows[-1] + 1 == n_masks)}
            connection.send_bytes(pack("rows", about, rows=rows, nll=nll, kl=np.full_like(nll, np.nan)))


if __name__ == "__main__":
    main()
