"""Runs pytest in forks of a process that has the heavy libraries loaded, which takes longer than most tests.

    python tests/mutants/server.py          in the folder of a tree; one JSON object a line in and out

In: {"tests": arguments of pytest, "limit": seconds}. Out: {"status": exit status of pytest, None where it took longer,
"output": what it printed}. The package itself, and what its tests are made of, are imported by each fork anew. Nothing
has run on the libraries before a fork: they have no threads yet.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

# As tests/conftest.py sets them, which a fork reads after the libraries have.
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    # As for workers of pytest-xdist: what needs several threads sets their number itself.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LAYERCOOP_THREADS": "1",
}
_LIBRARIES = (
    "hypothesis", "numpy", "pytest", "rich.console", "rich.table", "safetensors.torch", "torch", "transformers",
    "transformers.generation", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama", "typer",
)  # fmt: skip

# Plugins are among what is loaded already, and pytest would say of each that it cannot be rewritten.
_OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def main() -> None:
    """Answer until standard input ends."""
    os.environ.update(_SETTINGS)
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
        os.environ["TRITON_INTERPRET"] = "1"
    sys.path[0] = str(Path.cwd())
    for library in _LIBRARIES:
        importlib.import_module(library)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as log:
            status = _run(asked["tests"], asked["limit"], log.fileno())
            log.seek(0)
            output = log.read().decode(errors="replace")
        sys.stdout.write(json.dumps({"status": status, "output": output[-20_000:]}) + "\n")
        sys.stdout.flush()


def _run(tests: list[str], limit: float, log: int) -> int | None:
    """The exit status of pytest in a fork, None where it was ended after `limit` seconds."""
    child = os.fork()
    if child == 0:
        _test(tests, log)
    end = time.monotonic() + limit
    status = None
    while time.monotonic() < end:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(found)
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what the tests have started
    if status is None:
        os.waitpid(child, 0)
    return status


def _test(tests: list[str], log: int) -> None:
    """Run pytest and end this process with its status."""
    status = 3  # pytest's own for an internal error
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        pytest = importlib.import_module("pytest")
        status = int(pytest.main([*_OPTIONS, *tests]))
        sys.stdout.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
