"""Servers that the benchmarks ask, each in a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

START_SECONDS = 120


class Server:
    """A process that answers at `url`; the block's end is its end.

    Attributes:
        url: without a path.
        process: its only one.
    """

    def __init__(self, command: list[str], url: str | None) -> None:
        # A file takes what it says: a pipe that nobody reads would stop it.
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(command, stdout=self._said, stderr=self._said)
        self.url = url or self._wait(self._told)
        self._wait(self._answers)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.go_on()
        self.process.terminate()
        self.process.wait(60)
        self._said.close()

    def pause(self) -> None:
        """Take no processor until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def memory(self) -> int:
        """Bytes that are in memory: PSS, so that what processes share counts once."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]

    def said(self) -> str:
        """All that it has written."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def _told(self) -> str:
        found = re.search(r"on (http://\S+?):? ", self.said())
        return found[1] if found else ""

    def _answers(self) -> str:
        try:
            return "yes" if httpx.get(self.url + "/health").status_code == 200 else ""
        except httpx.TransportError:
            return ""

    def _wait(self, look: object) -> str:
        ends = time.monotonic() + START_SECONDS
        while not (found := look()):  # type: ignore[operator]
            if self.process.poll() is not None or time.monotonic() > ends:
                self.process.kill()
                raise SystemExit(f"{' '.join(map(str, self.process.args))} did not start:\n{self.said()}")  # type: ignore[arg-type]
            time.sleep(0.1)
        return str(found)


class Ours(Server):
    """`layercoop-fast serve`, whose models are `bench` and `bench:NAME` of each mask.

    Args:
        model: checkpoint folder.
        dtype: of the weights.
        masks: by name, as `--mask` takes them.
        parallel: requests computed at a time.
        kv_memory: for keys and values, those that are kept for later requests included.
        python: that runs it.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        masks: dict[str, str] | None = None,
        parallel: int = 16,
        kv_memory: str = "256MiB",
        python: str = sys.executable,
    ) -> None:
        command = [python, "-m", "layercoop_fast", "serve", model, "--name", "bench", "--port", "0"]
        command += ["--dtype", dtype, "--parallel", str(parallel), "--kv-memory", kv_memory]
        for name, blocks in (masks or {}).items():
            command += ["--mask", f"{name}={blocks}"]
        super().__init__(command, None)

    def metrics(self) -> dict[str, float]:
        """What its page says of keys, values and requests."""
        lines = httpx.get(self.url + "/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(found[f"layercoop:{name}"]) for name in ("num_requests_running", "kv_cache_usage_perc")}


class Llama(Server):
    """`llama-server` of llama.cpp.

    Args:
        binary: `llama-server`.
        gguf: its model.
        parallel: requests computed at a time.
        threads: of its computation.
        context: tokens of each request.

    It keeps no prompts of requests that have ended.
    """

    def __init__(self, binary: str, gguf: Path, parallel: int, threads: int, context: int = 1024) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [binary, "--model", str(gguf), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--threads", str(threads), "--parallel", str(parallel), "--ctx-size", str(parallel * context)]
        command += ["--cache-ram", "0"]
        super().__init__(command, f"http://127.0.0.1:{port}")
