"""What a client is told when its request fails: a status and a body in the form of OpenAI's interface."""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

log = logging.getLogger("layercoop_fast.serving")
# What pydantic puts between the names of fields: which of several types a value was read as.
_NO_FIELD = re.compile(r"str|int|.*\[.*")


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one line for people.
        code: a word for programs, "model_not_found" for example.
        param: the field of the request that is at fault, if it is one.
        headers: of the response, besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON that says so."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RefusedError:
    """A request that can never be answered as it is: 400."""
    return RefusedError(400, message, code, param=param)


def not_offered(param: str, why: str = "") -> RefusedError:
    """A field of OpenAI's interface that this server does not have: 400, and it names the field."""
    return RefusedError(
        400, f"{param} is not supported by this server{why}: leave it out", "unsupported_parameter", param=param
    )


def add_failures(app: FastAPI) -> None:
    """Every failure in OpenAI's form."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Of a field that may be several things, what is wrong with the one that it is says most.
        first = min(error.errors(), key=lambda each: each["type"].endswith("_type"))
        place = [str(each) for each in first["loc"][1:] if not _NO_FIELD.fullmatch(str(each))]
        if first["type"] == "json_invalid":
            return await refused(request, bad_request("the body is not JSON", code="invalid_json"))
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])[:80]
            text = f"{name} is not known to this server: leave it out"
            return await refused(request, bad_request(text, name, "unknown_parameter"))
        text = f"{'.'.join(place)[:200] or 'the body'}: {first['msg']}"
        return await refused(request, bad_request(text, place[0][:80] if place else None))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return await refused(
            request, RefusedError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        )

    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return await refused(
            request, RefusedError(500, f"an error that was not foreseen: {type(error).__name__}", "internal_error")
        )

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)
