"""The command itself: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving import run as serving_run
from layercoop_fast.serving.app import Served, make_app
from layercoop_fast.serving.masks import NamedMasks
from layercoop_fast.serving.options import Access, ServerOptions

ASKED = {"model": "tiny", "prompt": "abc", "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}


@pytest.fixture
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "layercoop_fast", "serve", str(folder), "--mask", "fast=1,3", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"on (http://127\.0\.0\.1:\d+): tiny, tiny:fast", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        rest = threading.Thread(target=process.stderr.read)
        rest.start()
        yield process, found[1]
        process.kill()
        rest.join()


def test_a_signal_lets_what_is_under_way_finish(started: tuple[subprocess.Popen[str], str]) -> None:
    process, url = started
    with ExitStack() as closed:
        responses = [closed.enter_context(httpx.stream("POST", f"{url}/v1/completions", json=ASKED)) for _ in range(6)]
        streams = [response.iter_lines() for response in responses]
        for lines in streams:
            next(lines)
        process.send_signal(signal.SIGTERM)
        for lines in streams:
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.wait(20) == 0


def test_a_second_signal_ends_at_once(started: tuple[subprocess.Popen[str], str]) -> None:
    process, url = started
    with httpx.stream(
        "POST", f"{url}/v1/completions", json={**ASKED, "max_tokens": 500, "n": 16}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1  # answers were cut off


def test_the_status_says_that_an_answer_was_cut_off_at_the_end_of_drain(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_run, "log_lines", lambda: None)  # it changes the loggers of the whole process
    model, options = LayerSkipModel.from_pretrained(folder), ServerOptions(drain=1)
    app: FastAPI = make_app(Served(model, NamedMasks(model, "tiny", {}, 1), options, Access()))
    begun, go_on, statuses = threading.Event(), threading.Event(), []
    holding = threading.Thread(target=lambda: model.batcher.between_steps(lambda: (begun.set(), go_on.wait(60))))
    with serving_run.listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def ask() -> None:
            """Ask for an answer of which no token is computed before the server gives it up."""
            try:
                statuses.append(httpx.post(f"{url}/v1/completions", json={**ASKED, "stream": False}).status_code)
            finally:
                go_on.set()

        def stop() -> None:
            while app.state.engine.under_way == 0 and not go_on.wait(0.01):
                pass
            os.kill(os.getpid(), signal.SIGTERM)

        holding.start()
        assert begun.wait(60)
        threads = [holding, *(threading.Thread(target=each) for each in (ask, stop))]
        for thread in threads[1:]:
            thread.start()
        status = serving_run.run(app, listening, options)
        for thread in threads:
            thread.join()
    assert (statuses, status) == ([500], 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--mask", "13-18"), "write NAME=BLOCKS"),
        (("--mask", "a=1", "--mask", "a=2"), "twice"),
        (("--mask", "a=99"), "blocks 0 to 4"),
        (("--mask", "a b=1"), "name"),
        (("--name", "a/b"), "name"),
        (("--timeout", "0"), "above 0"),
        (("--drain", "-1"), "0 seconds or more"),
        (("--client-timeout", "nan"), "above 0"),
        (("--connections", "0"), "connections"),
        (("--api-key", "a b"), "printable"),
        (("--host", "300.1.1.1"), "cannot listen"),
        (("--draft", "0-4"), "every block"),
        (("--worths", "nothing.npz"), "nothing.npz"),
    ],
)
def test_a_wrong_request_is_one_line(run: Any, folder: Path, arguments: tuple[str, ...], says: str) -> None:
    status, _, error = run("serve", folder, "--port", 0, *arguments)
    assert status == 2
    assert says in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_said_before_the_model_is_opened(run: Any, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, error = run("serve", folder / "nothing", "--port", port)
    assert (status, error.count("\n")) == (2, 1)
    assert f"port {port}" in error
