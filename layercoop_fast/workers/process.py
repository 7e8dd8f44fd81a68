"""One of the local worker processes: `python -m layercoop_fast.workers.process MARK SOCKET`.

MARK is the driver's `parent_mark()`, SOCKET the number of a socket to it. What makes this process end, the death of the
driver or the end of the socket, is watched before anything is imported that takes time.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from multiprocessing.connection import Connection

from layercoop_fast.system.processes import end_with_parent


def main() -> None:
    """Serve the driver until it closes the socket or is gone."""
    end_with_parent(sys.argv[-2])
    connection = Connection(int(sys.argv[-1]))
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # nobody wants what is being computed

    threading.Thread(target=read, name="driver", daemon=True).start()

    from layercoop_fast.workers.worker import serve  # here, since it loads torch

    serve(inbox.get, connection.send_bytes)


if __name__ == "__main__":
    main()
