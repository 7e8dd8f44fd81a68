"""The team of threads, through steps of a tiny model that run on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from team_player import make, play

from layercoop_fast import _C

pytestmark = pytest.mark.usefixtures("restore_core")


def run_python(code: str, threads: int) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, with a time limit that catches a team that hangs."""
    preamble = (
        f"import os, sys, threading\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import numpy as np\nfrom layercoop_fast import _C\nfrom team_player import make, play\n"
    )
    return subprocess.run(
        [sys.executable, "-c", preamble + code],
        env={**os.environ, "LAYERCOOP_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_results_do_not_depend_on_the_number_of_threads_which_can_change() -> None:
    model = make()
    _C.set_num_threads(1)
    expected, short = play(model), play(model, 5)
    for threads in (2, 3, 5, 2, 1, 4):
        _C.set_num_threads(threads)
        for _ in range(5):
            np.testing.assert_array_equal(play(model), expected)
            np.testing.assert_array_equal(play(model, 5), short)


def test_steps_of_many_python_threads() -> None:
    _C.set_num_threads(3)
    models = [make() for _ in range(3)]
    expected = play(models[0])
    with ThreadPoolExecutor(6) as callers:  # two callers a model: one waits for the other
        for found in callers.map(lambda index: play(models[index % 3]), range(60)):
            np.testing.assert_array_equal(found, expected)


def test_idle_threads_sleep() -> None:
    _C.set_num_threads(5)
    play(make())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.02


CHECK_IN_CHILD = """
model = make()
expected = play(model)

def check_in_child():
    child = os.fork()
    if child == 0:
        good = all((play(model) == expected).all() for _ in range(3))
        os._exit(0 if good and len(os.listdir("/proc/self/task")) == _C.num_threads() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_has_a_team_of_its_own_also_while_a_step_runs() -> None:
    code = """
check_in_child()
stop = threading.Event()
other = make()

def work(played):
    while not stop.is_set():
        play(played)

workers = [threading.Thread(target=work, args=[played]) for played in (model, other)]
for worker in workers:
    worker.start()
for _ in range(10):
    check_in_child()
stop.set()
for worker in workers:
    worker.join()
assert (play(model) == expected).all()
"""
    done = run_python(CHECK_IN_CHILD + code, 3)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_process_ends_while_threads_sleep() -> None:
    done = run_python("play(make())", 4)
    assert (done.returncode, done.stderr) == (0, "")
