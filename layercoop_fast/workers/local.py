"""Workers as processes of this machine, each with its share of the threads.

A worker is a fresh interpreter (no fork: threads and locks of this process stay here) that talks over a socket pair. It
opens the checkpoint itself. Weights that stay as they lie in the files are shared by all processes through the page
cache, copies are not (docs/clusters.md says what that comes to). It ends with the driver, however that ended
(`workers/process.py`), and when the driver closes its end of the socket; it takes no part in Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO

import torch

from layercoop_fast import _C
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.system.processes import parent_mark

PROGRAM = ("-m", "layercoop_fast.workers.process")
"""What the interpreter of a worker runs; `parent_mark()` and the number of its socket are the last two arguments."""
_END_SECONDS = 10.0


class LocalProcesses:
    """`n_workers` processes of this machine; a `Transport`.

    Args:
        n_workers: how many, 1 at least.
        device: "cpu", or "cuda": worker i then has GPU i to itself.
        program: arguments of the interpreter.

    Raises `RequestError` for a number below 1, or of more workers than there are GPUs.
    """

    def __init__(self, n_workers: int, *, device: str = "cpu", program: Sequence[str] = PROGRAM) -> None:
        if n_workers < 1:
            raise RequestError(f"workers={n_workers}: at least 1 worker is needed")
        self.on_gpus = torch.device(device).type == "cuda"
        if self.on_gpus and n_workers > torch.cuda.device_count():
            raise RequestError(f"workers={n_workers}: there are {torch.cuda.device_count()} GPUs, one for each worker")
        self.n_workers = n_workers
        self.threads = max(1, torch.get_num_threads() // n_workers)
        self.shares = {"": n_workers}
        self._program = tuple(program)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._connections: dict[int, Connection] = {}
        self._complaints: dict[int, IO[bytes]] = {}
        self._ends: dict[int, str] = {}

    def start(self, place: int) -> None:
        """Start a process."""
        ours, theirs = socket.socketpair()
        complaints = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        try:
            self._processes[place] = subprocess.Popen(
                [sys.executable, *self._program, parent_mark(), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=self._environment(place),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            complaints.close()
            raise RunError(f"worker {place} cannot be started: {reason(error)}") from error
        finally:
            theirs.close()
        self._connections[place] = Connection(ours.detach())
        self._complaints[place] = complaints

    def process_id(self, place: int) -> int:
        """The process at a place."""
        return self._processes[place].pid

    def send(self, place: int, message: bytes) -> None:
        """Send a message, unless the process is gone."""
        try:
            if place in self._connections:
                self._connections[place].send_bytes(message)
        except OSError:
            pass  # `receive` will find out

    def receive(self, seconds: float) -> list[tuple[int, bytes | None]]:
        """One message of each process that has some."""
        places = {connection: place for place, connection in self._connections.items()}
        received: list[tuple[int, bytes | None]] = []
        for connection in wait(list(places), seconds):
            assert isinstance(connection, Connection)
            place = places[connection]
            try:
                received.append((place, connection.recv_bytes()))
            except (EOFError, OSError):
                self._bury(place)
                received.append((place, None))
        return received

    def why_lost(self, place: int) -> str:
        """The signal that ended it, or the last line of what it wrote on standard error."""
        return self._ends.get(place, "its process is gone")

    def close(self) -> None:
        """End all processes."""
        for connection in self._connections.values():
            connection.close()  # ends the process, even one deep in a computation
        self._connections.clear()
        deadline = time.monotonic() + _END_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        for complaints in self._complaints.values():
            complaints.close()
        self._complaints.clear()

    def _bury(self, place: int) -> None:
        """Note how a process ended, and forget it."""
        self._connections.pop(place).close()
        process, complaints = self._processes.pop(place), self._complaints.pop(place)
        try:
            status = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            memory = ", which is how a system ends what takes too much memory" if status == -signal.SIGKILL else ""
            self._ends[place] = f"ended by {name}{memory}"
        else:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").strip().splitlines()
            self._ends[place] = lines[-1][:300] if lines else f"exit status {status}"
        complaints.close()

    def _environment(self, place: int) -> dict[str, str]:
        """This process's own, with the worker's threads, the same instruction set, and the package where it is here."""
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        made = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "LAYERCOOP_THREADS": str(self.threads),
            "LAYERCOOP_ISA": _C.isa(),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONSAFEPATH": "1",  # not what happens to lie in the current folder
        }
        if self.on_gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            made["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
        return made
