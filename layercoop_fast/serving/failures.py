"""What a client is told when its request fails: a status and a body in the form of OpenAI's interface."""

from __future__ import annotations

from typing import Any


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
