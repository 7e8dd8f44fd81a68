"""What every request passes first: sizes are bounded, answers are told apart by an id, and a line goes to the log.

A plain ASGI middleware: it hands messages on as they come, so that streams stay streams.
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
_BODY_SECONDS = 30.0
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Edge:
    """See the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id, status, sent = time.perf_counter(), uuid.uuid4().hex, 0, 0
        scope.setdefault("state", {})
        length, whole = 0, False

        async def bounded() -> Message:
            nonlocal length, whole
            # A client that sends a part of its body and then nothing does not stay for ever.
            message = await (receive() if whole else asyncio.wait_for(receive(), _BODY_SECONDS))
            if message["type"] == "http.request":
                whole = not message.get("more_body", False)
                length += len(message.get("body", b""))
                if length > MOST_BODY_BYTES:
                    return {"type": "http.disconnect"}  # the rest of it is not read
            return message

        async def answer(message: Message) -> None:
            if length <= MOST_BODY_BYTES:
                await marked(message)

        async def marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS, (b"x-request-id", request_id.encode())]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            refusal = _refusal(scope)
            if refusal is None:
                await self._app(scope, bounded, answer)
                if length > MOST_BODY_BYTES:
                    refusal = _too_large()
        except asyncio.TimeoutError:
            refusal = None if status else RefusedError(408, "the body did not come", "body_timeout")
            if refusal is not None:
                await _refuse(marked, refusal)
        else:
            if refusal is not None:
                await _read_on(receive, _READ_ON * MOST_BODY_BYTES)
                await _refuse(marked, refusal)
        finally:
            _log(scope, request_id, status, sent, time.perf_counter() - began)


def _refusal(scope: Scope) -> RefusedError | None:
    """What is wrong with a request's size, as far as its headers say."""
    size = len(scope["path"]) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MOST_HEADER_BYTES:
        return RefusedError(431, f"the headers are larger than {MOST_HEADER_BYTES} bytes", "headers_too_large")
    given = dict(scope["headers"]).get(b"content-length", b"0")
    if not given.isdigit() or len(given) > 18 or int(given) > MOST_BODY_BYTES:
        return _too_large()
    return None


def _too_large() -> RefusedError:
    text = f"the body is larger than {MOST_BODY_BYTES} bytes"
    return RefusedError(413, text, "body_too_large", headers={"Connection": "close"})


async def _read_on(receive: Receive, most: int) -> None:
    """Read what a client still sends, within reason: it hears the answer only once it has sent it."""
    while most > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        most -= len(message.get("body", b""))


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
