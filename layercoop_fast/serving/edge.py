"""What every request passes first: sizes are bounded, answers are told apart by an id, and a line goes to the log.

A plain ASGI middleware: it reads the body whole, hands it on, and lets answers pass as they come, so that streams stay
streams.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layercoop_fast.serving.failures import RefusedError
from layercoop_fast.serving.options import MOST_BODY_BYTES, MOST_HEADER_BYTES

# So many times a body that would be taken is read and dropped, of one that is not.
_READ_ON = 8
_CLOSE = {"Connection": "close"}
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Edge:
    """See the module.

    Args:
        app: what answers.
        seconds: that a client has to send a request's body.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id, status, sent = time.perf_counter(), uuid.uuid4().hex, 0, 0
        scope.setdefault("state", {})

        async def marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS, (b"x-request-id", request_id.encode())]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            try:
                _check_headers(scope)
                body = await asyncio.wait_for(_body(scope, receive), self._seconds)
            except RefusedError as refusal:
                await _refuse(marked, refusal)
            except asyncio.TimeoutError:
                text = "the body did not come in time"
                await _refuse(marked, RefusedError(408, text, "body_timeout", headers=_CLOSE))
            else:
                if body is not None:
                    await self._app(scope, _again(body, receive), marked)
        finally:
            _log(scope, request_id, status, sent, time.perf_counter() - began)


def _check_headers(scope: Scope) -> None:
    size = len(scope["path"]) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MOST_HEADER_BYTES:
        text = f"the headers are larger than {MOST_HEADER_BYTES} bytes"
        raise RefusedError(431, text, "headers_too_large", headers=_CLOSE)


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The body of a request; None where its client goes away first. `RefusedError` for one that is too large."""
    given = dict(scope["headers"]).get(b"content-length", b"0")
    refusal = None
    if not given.isdigit() or len(given) > 18 or int(given) > MOST_BODY_BYTES:
        refusal = _too_large()
    body, length = bytearray(), 0
    while True:
        # A body that is refused is read on, within reason: the client hears the answer only once it has sent it.
        message = await receive()
        if message["type"] != "http.request":
            return None
        length += len(message.get("body", b""))
        if length > MOST_BODY_BYTES and refusal is None:
            refusal = _too_large()
        if refusal is None:
            body += message.get("body", b"")
        if not message.get("more_body", False) or length > _READ_ON * MOST_BODY_BYTES:
            break
    if refusal is not None:
        raise refusal
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, and then what else comes: that the client goes away."""
    given = False

    async def found() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return found


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is larger than {MOST_BODY_BYTES} bytes", "body_too_large", headers=_CLOSE)


async def _refuse(send: Send, error: RefusedError) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    start = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _log(scope: Scope, request_id: str, status: int, sent: int, seconds: float) -> None:
    """A line of JSON. Prompts and answers are not in it, unless the server was told to write them."""
    if scope["path"] in ("/health", "/metrics") and status == 200:
        return
    line: dict[str, Any] = {
        "time": time.time(),
        "id": request_id,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 6),
        "bytes": sent,
    }
    told = scope["state"].get("told")
    if told is not None:
        runnings = told["ticket"].runnings
        line |= {
            "model": told["model"],
            "prompt_tokens": told["prompt_tokens"],
            "completion_tokens": sum(len(one.steps) for one in runnings),
            "finish": [one.finish or "abort" for one in runnings],
        }
        if "asked" in told:
            line["asked"] = told["asked"]
            line["answers"] = ["".join(step.text for step in one.steps) for one in runnings]
    logging.getLogger("layercoop_fast.serving.requests").info(json.dumps(line))
