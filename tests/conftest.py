"""Shared by every test: helper modules beside this file (`tiny_models`) are importable by their plain name.

Pytest runs with `--import-mode=importlib`, which leaves `sys.path` alone, so it is extended here. Nothing heavy is
imported: a test of the lazy command line must be able to see an interpreter without torch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

import limited  # noqa: E402 - from this folder

limited.hold_bitsandbytes()

# A shell starts what runs in the background with Ctrl-C ignored, and processes inherit that; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test needs the network; without these a mistyped path would be looked up at a hub that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Without a GPU, Triton's kernels run in its interpreter; Triton reads this when it is imported, by whomever.
if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Workers of pytest-xdist share the processors: threads of each would mostly wait for those of the others. What needs
# several threads sets their number itself.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LAYERCOOP_THREADS"):
        os.environ.setdefault(name, "1")
# The arrays are small: on a machine that is busy, NumPy's threads would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# dionysus has wheels for few machines (glibc 2.39 and x86-64, for one), and its tests are left out on others.
WITHOUT_WHEEL = "zigzag persistence: dionysus is not installed, and has no wheel for every machine"


def pytest_report_header() -> list[str]:
    """Say which tests are left out on this machine."""
    return [] if find_spec("dionysus") else [f"left out: {WITHOUT_WHEEL}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what depends on the instruction set; leave out what needs a library that has no wheel for this machine."""
    for item in items:
        if limited.depends(item.nodeid.replace("\\", "/").removeprefix("tests/")):
            item.add_marker(pytest.mark.isa)
    if not find_spec("dionysus"):
        out = [item for item in items if item.get_closest_marker("dionysus")]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process: (exit status, standard output, standard error)."""
    from layercoop_fast.__main__ import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["layercoop-fast", *map(str, arguments)])
        capsys.readouterr()  # what was printed before, by the making of models for example
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def restore_core() -> Iterator[None]:
    """Puts back the instruction set and the number of threads that a test changes."""
    from layercoop_fast import _C

    isa, threads = _C.isa(), _C.num_threads()
    yield
    _C.set_isa(isa)
    _C.set_num_threads(threads)


@pytest.fixture
def one_thread(restore_core: None) -> Iterator[None]:
    """One thread of torch's; workers in threads set the threads of this process, which are put back."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
