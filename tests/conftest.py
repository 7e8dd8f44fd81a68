"""Shared by every test: the helper modules in `support/` (`tiny_models`, say) are importable by their plain name.

Pytest runs with `--import-mode=importlib`, which leaves `sys.path` alone, so it is extended here. Nothing heavy is
imported: a test of the lazy command line must be able to see an interpreter without torch.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

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


# Libraries that have no wheel for some machines, and what is left out where one is not installed: whole folders and
# files, tests that use a fixture, tests marked `needs`. Everything else that tests use comes with the extra [test].
LIBRARIES = {
    "triton": (
        "kernels/gpu",
        "gpu/test_on_fake_cuda.py",
        "bench/test_gpu.py",
        "runtime/test_gpu_executor.py",
        "runtime/test_gpu_quantised.py",
    ),
    "ray": ("slow/test_ray_workers.py",),
    "grpc": ("slow/test_ray_serve.py",),  # of ray[serve]
    "shapiq": (),
    "dionysus": (),
    "playwright": ("slow/test_board_in_browser.py",),  # not in the extra [test]; it drives a Chromium of the system
}
FIXTURES = {"interpreted": "triton", "shapiq": "shapiq"}
MISSING = [name for name in LIBRARIES if find_spec(name) is None]
if "playwright" not in MISSING and shutil.which("chromium") is None:
    MISSING.append("playwright")


def pytest_report_header() -> list[str]:
    """Say which tests are left out on this machine."""
    return [f"left out: tests of {name}, which is not installed (not every machine has a wheel)" for name in MISSING]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out files that cannot be imported."""
    inside = collection_path.relative_to(TESTS).as_posix() if collection_path.is_relative_to(TESTS) else ""
    return True if any(inside in LIBRARIES[name] for name in MISSING) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what depends on the processor's instructions; leave out tests of libraries that are not here."""
    left_out = []
    for item in items:
        if limited.depends(item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.isa)
        needed = {name for mark in item.iter_markers("needs") for name in mark.args}
        needed |= {FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES}
        if needed & set(MISSING):
            left_out.append(item)
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


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


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Triton's kernels run in its interpreter; it warns of the infinities that kernels mean, which chips do not."""
    import numpy as np

    from layercoop_fast.kernels.gpu.frame import interpreted

    if not interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: its kernels run on the GPU here")
    with np.errstate(all="ignore"):
        yield
