"""The core's loops on the threads of torch's OpenMP: the same results, no further threads, and a way back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from layercoop_fast import _C
from layercoop_fast.system import openmp

ON_BORROWED_THREADS = """
import os
import numpy as np
import torch
from layercoop_fast import _C
from layercoop_fast.kernels.rms_norm import rms_norm  # the first operation that needs torch borrows its threads
from layercoop_fast.system.openmp import borrow_torchs_threads

rows = np.random.default_rng(0).integers(0, 2**63, size=(400_003, 1), dtype=np.uint64)
expected = np.unpackbits(rows.view(np.uint8), axis=1).sum(axis=1)
tasks = lambda: len(os.listdir("/proc/self/task"))
right = lambda: all((_C.popcounts(rows) == expected).all() for _ in range(20))

assert borrow_torchs_threads()
torch.set_num_threads(3)
_C.set_num_threads(3)
torch.mm(torch.ones(2000, 500), torch.ones(500, 500))
torch.ones(10_000_000).add_(1)
before = tasks()
assert right() and tasks() == before, "loops started threads of their own"
for count in (5, 1, 2, 3):
    _C.set_num_threads(count)
    assert right()
bad = np.zeros((400_003, 1), dtype=np.uint64)
bad[[70_000, 300_000]] = 1 << 63
for _ in range(50):
    try:
        _C.unpack_masks(bad, 63)
        raise SystemExit("a bad row was taken")
    except ValueError as error:
        assert "row 70000 has a bit set" in str(error)
child = os.fork()
if child == 0:
    os._exit(0 if right() and tasks() == 3 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a forked child is not on its own threads"
_C.borrow_threads(0)
before = tasks()
assert right() and tasks() == before + 2
"""


def test_loops_run_on_torchs_threads() -> None:
    if sys.platform != "linux":  # torch has another OpenMP there
        assert not openmp.borrow_torchs_threads()
        return
    command = [sys.executable, "-c", ON_BORROWED_THREADS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_without_torchs_openmp_loops_have_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lent: list[int] = []
    monkeypatch.setattr(_C, "borrow_threads", lent.append)
    monkeypatch.setattr(openmp, "_TORCHS", openmp.re.compile("no such library"))
    assert not openmp.borrow_torchs_threads()
    assert lent == []
