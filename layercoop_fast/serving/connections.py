"""Connections: how many may be open, and how long each may wait for its client.

uvicorn bounds how long a connection may be idle between two requests, and no other wait. Here the server waits no
longer than `client_timeout` seconds

- for the line and the headers of a request, from when the connection is made or the answer before is written (bytes
  that come one by one do not prolong it; the body has a time of its own, see `edge.py`), and
- for the client to read what was written: in that time it must take `LEAST_READ` bytes, or all there are.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from layercoop_fast.serving.failures import RefusedError
from layercoop_fast.serving.options import MOST_HEADER_BYTES, ServerOptions

LEAST_READ = 2**20
"""Bytes that a client must read in the time of one wait, where that many wait for it."""


def config_of(app: ASGIApp, options: ServerOptions, **more: Any) -> uvicorn.Config:
    """uvicorn's config of a server that bounds its connections; `more` are further arguments of `uvicorn.Config`."""
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, options=options),  # type: ignore[arg-type]  # uvicorn calls it, as it does a class
        # h11 bounds a request's line and headers; httptools does not.
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        timeout_keep_alive=options.client_timeout,  # type: ignore[arg-type]  # any number of seconds
        server_header=False,
        access_log=False,
        log_config=None,
        ws="none",
        **more,
    )


class BoundedProtocol(H11Protocol):
    """One connection; see the module."""

    def __init__(self, *arguments: Any, options: ServerOptions, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._options = options
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes that waited for the client when the timer was started

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it where too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self._options.connections:
            transport.write(_BUSY)
            transport.close()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Read what came; once a request's head is there, nothing is waited for any more."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete and not self.flow.write_paused:
            self._stop()

    def on_response_complete(self) -> None:
        """An answer was written: the next request's time begins."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """More waits for the client than is wise to hold."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """The client has read on."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop()

    def _wait(self) -> None:
        self._stop()
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self._options.client_timeout, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread <= self._unread - LEAST_READ:
            self._wait()
        else:
            self.transport.abort()


def _busy() -> bytes:
    error = RefusedError(503, "too many connections are open", "too_many_connections")
    body = json.dumps(error.body()).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_BUSY = _busy()
