"""The thread pool, through functions that run on it: `popcounts`, and `unpack_masks` whose check can fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from layercoop_fast import _C

pytestmark = pytest.mark.usefixtures("restore_core")

# Rows of one word that a thread takes at a time. A dozen ranges and a bit make the threads share the work.
RANGE = 1 << 15
N_ROWS = 400_003
ROWS = np.random.default_rng(0).integers(0, 2**63, size=(N_ROWS, 1), dtype=np.uint64)
COUNTS = np.unpackbits(ROWS.view(np.uint8), axis=1).sum(axis=1)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, with a time limit that catches a pool that hangs."""
    preamble = "import os, threading\nimport numpy as np\nfrom layercoop_fast import _C\n"
    inherited = {name: value for name, value in os.environ.items() if name != "LAYERCOOP_THREADS"}
    return subprocess.run(
        [sys.executable, "-c", preamble + code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_number_of_threads_follows_the_processors_of_the_process() -> None:
    assert run_python("print(_C.num_threads() == len(os.sched_getaffinity(0)))").stdout.strip() == "True"


def test_number_of_threads_follows_the_environment() -> None:
    assert run_python("print(_C.num_threads())", LAYERCOOP_THREADS="3").stdout.strip() == "3"


@pytest.mark.parametrize("value", ["", "0", "-2", "two", "2 ", "4.0", "1025", "99999999999999999999"])
def test_a_bad_environment_is_a_clear_error_at_import(value: str) -> None:
    done = run_python("", LAYERCOOP_THREADS=value)
    assert done.returncode != 0
    assert f"ImportError: LAYERCOOP_THREADS: '{value}' is not a number of threads in 1..1024" in done.stderr


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_a_bad_number_of_threads_is_refused(count: int) -> None:
    before = _C.num_threads()
    with pytest.raises(ValueError, match=rf"number of threads: {count} is not in 1\.\.1024"):
        _C.set_num_threads(count)
    assert _C.num_threads() == before


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_threads(count: int) -> None:
    _C.set_num_threads(count)
    assert _C.num_threads() == count
    for _ in range(20):
        np.testing.assert_array_equal(_C.popcounts(ROWS), COUNTS)


def test_the_number_of_threads_can_change_between_loops() -> None:
    for count in [2, 5, 1, 3, 3, 2, 4]:
        _C.set_num_threads(count)
        np.testing.assert_array_equal(_C.popcounts(ROWS), COUNTS)


def test_loops_of_many_python_threads() -> None:
    _C.set_num_threads(3)
    with ThreadPoolExecutor(4) as callers:
        for counts in callers.map(lambda _: _C.popcounts(ROWS), range(40)):
            np.testing.assert_array_equal(counts, COUNTS)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [(6 * RANGE, 8 * RANGE - 1), (7 * RANGE - 1, 7 * RANGE), (N_ROWS - 1,)])
def test_the_lowest_exception_reaches_the_caller_and_the_pool_goes_on(rows: tuple[int, ...], count: int) -> None:
    # Neighbouring ranges, of which now the lower and now the upper comes upon its bad row first.
    _C.set_num_threads(count)
    bad = np.zeros((N_ROWS, 1), dtype=np.uint64)
    bad[list(rows)] = 1 << 63
    for _ in range(100):
        with pytest.raises(ValueError, match=f"row {rows[0]} has a bit set"):
            _C.unpack_masks(bad, 63)
    np.testing.assert_array_equal(_C.popcounts(ROWS), COUNTS)


def test_idle_threads_sleep() -> None:
    _C.set_num_threads(5)
    _C.popcounts(ROWS)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.02


CHECK_IN_CHILD = """
rows = np.arange(400_003, dtype=np.uint64).reshape(-1, 1)
expected = np.unpackbits(rows.view(np.uint8), axis=1).sum(axis=1)

def check_in_child():
    child = os.fork()
    if child == 0:
        good = all((_C.popcounts(rows) == expected).all() for _ in range(3))
        os._exit(0 if good and len(os.listdir("/proc/self/task")) == _C.num_threads() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    code = """
_C.popcounts(rows)
check_in_child()
assert (_C.popcounts(rows) == expected).all()
"""
    done = run_python(CHECK_IN_CHILD + code, LAYERCOOP_THREADS="3")
    assert done.returncode == 0, done.stderr


def test_fork_while_a_loop_runs() -> None:
    code = """
stop = threading.Event()

def work():
    while not stop.is_set():
        _C.popcounts(rows)

worker = threading.Thread(target=work)
worker.start()
for _ in range(20):
    check_in_child()
stop.set()
worker.join()
"""
    done = run_python(CHECK_IN_CHILD + code, LAYERCOOP_THREADS="3")
    assert done.returncode == 0, done.stderr


def test_the_process_ends_while_threads_sleep() -> None:
    done = run_python("_C.popcounts(np.zeros((400_000, 1), dtype=np.uint64))", LAYERCOOP_THREADS="4")
    assert (done.returncode, done.stderr) == (0, "")
