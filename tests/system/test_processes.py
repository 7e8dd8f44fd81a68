"""Processes of ours end with the one that started them, whatever either does at the moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_table import command_of, descendants, left_after, parents

from layercoop_fast.system.processes import tied

SECONDS = 5.0
# A child that tells its number and then sleeps; `PyDLL` keeps every other thread of Python's from running meanwhile.
CHILD = """
import ctypes, os, sys, time
from layercoop_fast.system.processes import end_with_parent
end_with_parent(sys.argv[1])
print(os.getpid(), flush=True)
{sleep}
"""
DEAF, LISTENING = "ctypes.PyDLL(None).sleep(120)", "time.sleep(120)"
PARENT = """
import subprocess, sys, threading, time
from layercoop_fast.system.processes import parent_mark
def start():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], parent_mark()], stdout=subprocess.PIPE, text=True)
    print(child.stdout.readline(), end="", flush=True)
{start}
time.sleep(120)
"""
BY_MAIN = "start()"
BY_THREAD = "thread = threading.Thread(target=start); thread.start(); thread.join()"


def started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("start", "sleep"), [(BY_MAIN, DEAF), (BY_MAIN, LISTENING), (BY_THREAD, LISTENING)])
def test_a_child_ends_when_its_parent_is_killed(start: str, sleep: str) -> None:
    with started("-c", PARENT.format(start=start), CHILD.format(sleep=sleep)) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            time.sleep(0.2)  # the thread that started it has ended by now
            assert parents().get(child) == parent.pid
        finally:
            parent.kill()
        assert not left_after([child], SECONDS)


def test_a_parent_that_is_gone_before_the_child_asks() -> None:
    """Its number is then that of somebody else, or of nobody."""
    code = (
        "import sys; from layercoop_fast.system.processes import end_with_parent\n"
        "end_with_parent(sys.argv[1], watch=False); print('on')"
    )
    for mark, said in ((str(os.getppid()), b""), (str(os.getpid()), b"on\n")):
        done = subprocess.run([sys.executable, "-c", code, mark], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, said)


def test_a_program_that_knows_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("word = 'said'")
    (tmp_path / "program.py").write_text("import sys, other\nprint(__name__, other.word, *sys.argv[1:])")
    done = subprocess.run(tied(str(tmp_path / "program.py"), "a", "b"), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("__main__ said a b\n", "")
    done = subprocess.run(tied("json.tool", "--help"), capture_output=True, text=True, check=False)
    assert (done.returncode, "JSON" in done.stdout) == (0, True)


DRIVERS = {
    "worker": "from layercoop_fast.workers.local import LocalProcesses; LocalProcesses(1).start(0); import time; "
    "time.sleep(120)",
    "measuring": "from layercoop_fast.pruning.checkpoint_costs import measure_costs; measure_costs(['nowhere'])",
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_child_that_is_importing_ends_with_its_driver(driver: str) -> None:
    """The real ones, killed while they import torch."""
    with started("-c", DRIVERS[driver]) as process:
        deadline = time.monotonic() + 60
        while not (ours := {child for child in descendants(process.pid) if "layercoop_fast." in command_of(child)}):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        assert not left_after(ours, SECONDS)
