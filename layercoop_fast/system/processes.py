"""Child processes that end with the process that started them, however that ends.

    subprocess.Popen([sys.executable, "-m", "some.module", *arguments, parent_mark()])      # the parent
    end_with_parent(mark)                                                                   # the child, first of all

kill -9 of the parent runs none of its code, so the child has to notice. On Linux the kernel ends the child at once,
even in the middle of an import or a long computation. On every system a thread of the child checks twice a second
whether the parent still exists.

`python -m layercoop_fast.system.processes MARK FILE|MODULE [ARGUMENT...]` runs any program in such a child.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5
_BY_THREAD = ":thread"


def parent_mark() -> str:
    """What identifies this process to a child, for `end_with_parent`.

    Linux ends a child when the *thread* that started it ends. Only the main thread lives as long as its process, so
    children of other threads are marked, and do not ask the kernel.
    """
    main = threading.current_thread() is threading.main_thread()
    return f"{os.getpid()}{'' if main else _BY_THREAD}"


def end_with_parent(mark: str, *, watch: bool = True) -> None:
    """End this process when its parent has ended; `mark` is the parent's `parent_mark()`.

    With `watch` a thread of this process checks as well; without, only the kernel of Linux does.
    """
    number, _, by_thread = mark.partition(":")
    parent = int(number)
    if sys.platform == "linux" and not by_thread:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the kernel was asked
        os._exit(0)
    if watch:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(0)  # nobody waits for the result any more


def tied(*program: str) -> list[str]:
    """The command that runs a Python file, or a module, in a process that ends with this one."""
    return [sys.executable, "-m", __name__, parent_mark(), *program]


def _run(mark: str, program: str, *arguments: str) -> None:
    end_with_parent(mark)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path[0] = os.path.dirname(os.path.abspath(program))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(*sys.argv[1:])
