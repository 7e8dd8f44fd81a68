"""How the command line ends: signals, unexpected errors, the environment, and pipes that nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_tiny

L = 6
PLAN = ("plan", "--layers", "8", "--masks", "50")
SMALL = ("--windows", 2, "--tokens", 24)


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "layercoop_fast", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("main") / "model", n_layers=L)


def test_an_unexpected_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("layercoop_fast.masked.forecast.forecast", fail)
    status, printed, error = run(*PLAN)
    assert (status, printed) == (1, "")
    assert error == (
        "layercoop-fast: unexpected error, KeyError: 'a\\nb' (set LAYERCOOP_TRACEBACK=1 in the environment to "
        "see where)\n"
    )
    monkeypatch.setenv("LAYERCOOP_TRACEBACK", "1")
    status, _, error = run(*PLAN)
    assert status == 1
    assert "Traceback (most recent call last)" in error
    assert "in fail" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", [["--store", "all.store"], []])
def test_a_signal_says_what_is_kept(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, kind: list[str]
) -> None:
    """As Ctrl-C does, with the status that shells give to a process that the signal ended; and the run can go on."""
    monkeypatch.chdir(tmp_path)
    np.save("masks.npy", np.unique(np.random.default_rng(0).random((40, L)) < 0.6, axis=0))
    came = []

    def stop(_: Any, stage: str, done: int, total: int) -> None:
        came.append(number)
        os.kill(os.getpid(), number)

    command = ("evaluate", model, "--masks", "masks.npy", "--out", "out.npz", *SMALL, *kind)
    with monkeypatch.context() as patch:
        patch.setattr("layercoop_fast.game.known_scores.COMMIT_SECONDS", 0.0)
        patch.setattr("layercoop_fast.progress.Bars.update", stop)
        status, _, error = run(*command)
    assert len(came) == 1
    assert status == 128 + number
    assert error.count("\n") == 1
    place = kind[1] if kind else "out.npz.store"
    assert f"masks measured so far are kept in {place}: the same command" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([place, "masks.npy"])
    assert signal.getsignal(number) == signal.SIG_DFL
    assert run(*command, *([] if kind else ["--resume"]))[0] == 0


def test_a_signal_before_anything_is_kept(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise SystemError("what a library makes of it") from None

    monkeypatch.setattr("layercoop_fast.masked.forecast.forecast", stop)
    status, _, error = run(*PLAN)
    assert (status, error.startswith("layercoop-fast: stopped. Files that were finished are kept")) == (143, True)


SLOW_TO_STOP = """
import os, signal, time
from layercoop_fast.system.stopping import stopped_by_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with stopped_by_signals():
    os.kill(os.getpid(), signal.SIGHUP)  # ignored, as under nohup
    print("on", flush=True)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        print("in order", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        print("not reached", flush=True)
"""


def test_a_second_signal_ends_at_once_and_an_ignored_one_stays_so() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_TO_STOP], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (143, "on\nin order\n", "")


def test_a_talk_ends_by_a_signal(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C stops an answer, or says how to leave; a signal ends the talk."""

    def typed(_: str) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "/mask"

    monkeypatch.setattr("builtins.input", typed)
    assert run("chat", model)[0] == 143


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LAYERCOOP_THREADS", "two", "LAYERCOOP_THREADS: 'two' is not a number of threads in 1..1024"),
        ("LAYERCOOP_THREADS", "1025", "LAYERCOOP_THREADS: '1025' is not a number of threads in 1..1024"),
        ("LAYERCOOP_ISA", "sse9", "LAYERCOOP_ISA: unknown instruction set 'sse9'; use one of portable"),
        ("LAYERCOOP_DOTS", "off", "LAYERCOOP_DOTS: 'off' is neither 0 nor 1"),
        ("LAYERCOOP_MATRICES", "2", "LAYERCOOP_MATRICES: '2' is neither 0 nor 1"),
    ],
)
def test_nonsense_in_the_environment(tmp_path: Path, name: str, value: str, said: str) -> None:
    done = process(*PLAN, env={**os.environ, name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"layercoop-fast: {said}")
    assert done.stderr.count("\n") == 1


def test_commands_that_need_no_extension_go_on(tmp_path: Path) -> None:
    done = process("store", "info", str(tmp_path / "none"), env={**os.environ, "LAYERCOOP_THREADS": "two"})
    assert "does not exist" in done.stderr


# As users have it; unbuffered, writing fails within the command.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("arguments", [PLAN, (*PLAN, "--json"), ("--help",)])
def test_a_pipe_that_nobody_reads(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "layercoop_fast", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=120, env=BUFFERED)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_below_standard_output() -> None:
    """A real one: /dev/full."""
    command = [sys.executable, "-m", "layercoop_fast", *PLAN, "--json"]
    for errors, said in ((subprocess.PIPE, "layercoop-fast: the system: No space left on device\n"), (None, None)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=errors or full, text=True, check=False, timeout=120, env=BUFFERED
            )
        assert (done.returncode, done.stderr) == (1, said)


def test_no_standard_output_at_all() -> None:
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", code, "-m", "layercoop_fast", *PLAN]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
