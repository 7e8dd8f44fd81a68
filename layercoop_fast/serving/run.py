"""Start the server on a socket, and end it: one signal lets what is under way finish, a second one ends at once."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.serving.connections import config_of
from layercoop_fast.serving.options import ServerOptions

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; `RequestError` where it cannot. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(1024)
    except (OSError, OverflowError) as error:
        found.close()
        raise RequestError(f"cannot listen on {host}, port {port}: {reason(error)}") from error
    return found


def run(app: FastAPI, listening: socket.socket, options: ServerOptions) -> int:
    """Answer requests until a signal comes; returns the exit status: 0 where all that was under way was answered.

    Args:
        app: of `make_app`.
        listening: of `listen`.
        options: of the server.
    """
    log_lines()
    counted = _CutOff(app)
    config = config_of(counted, options, timeout_graceful_shutdown=max(1, math.ceil(options.drain)))
    server = _Server(config)
    server.run(sockets=[listening])
    engine = app.state.engine
    if server.force_exit:
        # Then uvicorn did not shut the application down, and Python must not end under a thread that computes.
        engine.close()
    return 1 if not server.started or server.force_exit or engine.failed or counted.requests else 0


class _CutOff:
    """An application, and how many requests uvicorn cancelled: those that had no whole answer when `drain` was over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            self.requests += 1
            raise


class _Server(uvicorn.Server):
    """uvicorn's server, which raises signals again at its end; this one has answered them by then."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # What is ignored stays so: SIGHUP under nohup.
        taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def log_lines() -> None:
    """A line of JSON for each request on standard error, and errors as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("layercoop_fast.serving", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
