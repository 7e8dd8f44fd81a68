"""Workers as real processes: the bits of one process with as many threads, one killed in the middle, none left over."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.worths import Worths
from layercoop_fast.workers import local
from layercoop_fast.workers.local import LocalProcesses
from layercoop_fast.workers.opening import open_workers
from layercoop_fast.workers.remote import RemoteModel

L = 6
SMALL: dict[str, Any] = {"windows": 2, "tokens": 24}
MASKS = np.unique(np.random.default_rng(3).random((60, L)) < 0.6, axis=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("local") / "model", n_layers=L)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(model: Path, one_thread: None) -> Worths:
    return ModelGame.from_pretrained(str(model), **SMALL).evaluate(MASKS)


def test_one_of_two_processes_is_killed(model: Path, expected: Worths) -> None:
    """It has a task then, which it has not begun to answer: it is stopped before it gets one."""
    told: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "layer evaluations" and not told:
            os.kill(victim, signal.SIGKILL)
        told.append(done)

    game = ModelGame.from_pretrained(str(model), workers=2, on_progress=kill, **SMALL)
    assert game.fingerprints == expected.fingerprints
    assert isinstance(game.masked, RemoteModel)
    transport = game.masked.workers.transport
    assert isinstance(transport, LocalProcesses)
    processes = [transport.process_id(place) for place in range(2)]
    victim = processes[0]
    os.kill(victim, signal.SIGSTOP)
    found = game.evaluate(MASKS)
    assert told[-1] > 0
    assert found.window_nll.tobytes() == expected.window_nll.tobytes()
    assert "SIGKILL" in transport.why_lost(0)
    processes.append(transport.process_id(0))  # the one that took its place
    game.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_worker_ends_with_its_driver() -> None:
    """Whatever becomes of the driver: its end of the socket is closed then."""
    transport = LocalProcesses(1, program=["-c", _EARS])
    transport.start(0)
    process = transport._processes[0]
    transport._connections[0].close()  # as the death of this process would
    assert process.wait(60) is not None
    transport.close()


def test_all_workers_have_the_same_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that do not, since they are stopped say, are killed; not one after the other has its ten seconds."""
    monkeypatch.setattr(local, "_END_SECONDS", 1.0)
    transport = LocalProcesses(4, program=["-c", _EARS])
    for place in range(4):
        transport.start(place)
        os.kill(transport.process_id(place), signal.SIGSTOP)
    processes = list(transport._processes.values())
    began = time.monotonic()
    transport.close()
    assert time.monotonic() - began < 3.5
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 4


def test_a_process_that_cannot_be_started_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    temporary = tempfile.TemporaryFile

    def note() -> Any:
        made.append(temporary())
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", note)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RunError, match="worker 0 cannot be started: No such file"):
        LocalProcesses(1).start(0)
    assert [file.closed for file in made] == [True]


_EARS = "import sys; from multiprocessing.connection import Connection; Connection(int(sys.argv[-1])).recv_bytes()"


def test_a_process_that_fails_says_why() -> None:
    transport = LocalProcesses(1, program=["-c", "raise SystemExit('no room in here')"])
    transport.start(0)
    transport.send(0, b"anything")
    assert transport.receive(20.0) == [(0, None)]
    assert transport.why_lost(0) == "no room in here"
    transport.close()


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert [LocalProcesses(count).threads for count in (1, 2, 3, 9)] == [7, 3, 2, 1]


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    transport = LocalProcesses(2, device="cuda")
    assert [transport._environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["4", "6"]
    with pytest.raises(RequestError, match="there are 2 GPUs"):
        LocalProcesses(3, device="cuda")


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (0, "at least 1 worker"),
        ("-2", "at least 1 worker"),
        ("two", "give a number of local processes, ray, or ray:HOST:PORT"),
        ("2.5", "give a number of local processes, ray, or ray:HOST:PORT"),
    ],
)
def test_bad_numbers_of_workers(workers: int | str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        open_workers(workers, {})


def test_a_device_that_workers_cannot_share_out(model: Path) -> None:
    with pytest.raises(RequestError, match="ask for cpu, or cuda for a GPU each"):
        ModelGame.from_pretrained(str(model), workers=2, device="cuda:1")
