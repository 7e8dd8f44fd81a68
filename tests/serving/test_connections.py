"""Clients that keep a connection without using it, and too many of them: each is ended, and others are answered."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from tiny_server import Server, serving
from uvicorn.server import ServerState

from layercoop_fast.serving.connections import LEAST_READ, config_of
from layercoop_fast.serving.options import ServerOptions

ASKED = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0}
LONG = {**ASKED, "max_tokens": 400, "ignore_eos": True, "stream": True}
SECONDS = 0.4


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, ServerOptions(client_timeout=SECONDS, connections=4), send_buffer=4096) as found:
        yield found


def connected(server: Server, receive_buffer: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    found = socket.socket()
    if receive_buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    found.settimeout(20)
    found.connect((host, int(port)))
    return found


def request(body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    return head.format(len(text)).encode() + text


def until_closed(connection: socket.socket, drip: bytes = b"") -> bytes:
    """What the server sends before it ends the connection, to a client that goes on sending a byte at a time."""
    found = b""
    connection.settimeout(0.02 if drip else 20)
    for number in range(1000):
        try:
            if drip:
                connection.sendall(drip[number % len(drip) :][:1])
            piece = connection.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return found
        if not piece:
            return found
        found += piece
    raise AssertionError("the connection was not ended")


@pytest.mark.parametrize("begun", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_sends_nothing_more_is_ended(server: Server, begun: bytes) -> None:
    with closing(connected(server)) as connection:
        connection.sendall(begun)
        assert until_closed(connection) == b""


def test_headers_that_come_byte_by_byte_do_not_prolong_it(server: Server) -> None:
    with closing(connected(server)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert until_closed(connection, drip=b"y") == b""


def test_nor_do_those_of_a_second_request(server: Server) -> None:
    with closing(connected(server)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until_closed(connection, drip=b"GET /health HTTP/1.1").count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/health"])
def test_a_body_that_comes_byte_by_byte_is_refused(server: Server, path: str) -> None:
    with closing(connected(server)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
        head, _, body = until_closed(connection, drip=b" ").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "body_timeout"


def test_a_client_that_does_not_read_its_answer_is_ended(server: Server) -> None:
    with closing(connected(server, receive_buffer=4096)) as connection:
        connection.sendall(request({**LONG, "n": 8, "logprobs": 20}))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert comes(lambda: server.engine.under_way == 0)
        # What the server still had for it is dropped: a reader that comes later does not find the end.
        assert comes(lambda: not server.uvicorn.server_state.connections)
        assert b"[DONE]" not in until_closed(connection)
    assert server.post("/v1/completions", ASKED).status_code == 200


def comes(true: Callable[[], bool]) -> bool:
    return any(true() or time.sleep(0.005) for _ in range(4000))


def test_a_client_that_waits_for_its_answer_is_not_ended(server: Server) -> None:
    """The time is for the client's part alone."""
    with closing(connected(server)) as connection:
        with server.held():
            connection.sendall(request(ASKED))
            time.sleep(2 * SECONDS)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


class Unread(asyncio.Transport):
    """A transport of a client that reads `step` bytes of what waits for it every `seconds`, in the loop's own time."""

    def __init__(self, waiting: int, step: int, seconds: float) -> None:
        super().__init__()
        self.waiting, self.step, self.seconds, self.aborted = waiting, step, seconds, False
        asyncio.get_running_loop().call_later(seconds, self._read)

    def _read(self) -> None:
        self.waiting = max(0, self.waiting - self.step)
        asyncio.get_running_loop().call_later(self.seconds, self._read)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.aborted = True
        self.step = 0


@pytest.mark.parametrize(("step", "ended"), [(LEAST_READ, False), (LEAST_READ // 4, True)])
def test_a_slow_reader_is_not_ended_while_it_reads_on(server: Server, step: int, ended: bool) -> None:
    """It gets all; then it has as long to ask again."""

    async def run() -> bool:
        transport = Unread(3 * LEAST_READ, step, seconds=0.02)
        config = config_of(cast(FastAPI, server.uvicorn.config.app), ServerOptions(client_timeout=0.03))
        config.load()
        protocol = config.http_protocol_class(config, ServerState(), {})
        protocol.connection_made(transport)
        while not transport.aborted:
            await asyncio.sleep(0.001)
        return transport.waiting > 0

    assert asyncio.run(run()) == ended


def test_one_connection_too_many_is_told_so(folder: Path) -> None:
    with serving(folder, ServerOptions(connections=3)) as server, ExitStack() as closed:
        open_ones = [closed.enter_context(closing(connected(server))) for _ in range(3)]
        for each in open_ones:
            each.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert each.recv(65536).startswith(b"HTTP/1.1 200")
        with closing(connected(server)) as one_more:
            head, _, body = until_closed(one_more).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        open_ones[0].close()
        assert comes(lambda: len(server.uvicorn.server_state.connections) < 3)
        assert server.http.get("/health").status_code == 200


def test_200_clients_that_leave_before_the_first_token(server: Server) -> None:
    before = server.model.executor.computed
    with server.held():
        for number in range(200):
            with closing(connected(server)) as connection:
                connection.sendall(request({**LONG, "stream": number % 2 == 0}))
                assert comes(lambda: server.engine.under_way == 1)
            assert comes(lambda: server.engine.under_way == 0)
    assert server.at_rest()
    # The step that was under way may read the prompts of those who wait first; nothing is answered.
    assert server.model.executor.computed - before < 1000


def test_200_clients_that_leave_in_the_middle_of_a_stream(server: Server) -> None:
    for _ in range(200):
        with closing(connected(server)) as connection:
            connection.sendall(request(LONG))
            found = b""
            while b"data:" not in found:
                found += connection.recv(65536)
            assert b"[DONE]" not in found
    assert server.at_rest()
    assert server.post("/v1/completions", ASKED).status_code == 200
