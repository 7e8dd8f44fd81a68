"""The command itself: what it says, and how it ends."""

from __future__ import annotations

import json
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
