"""Options of a server."""

from __future__ import annotations

from dataclasses import dataclass

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import MACHINE, OUTPUT, option

MOST_ANSWERS = 16
"""Answers that one request may ask for: `n` times the number of prompts."""
MOST_BODY_BYTES = 4 * 2**20
"""Size of a request's body."""
MOST_HEADER_BYTES = 32 * 2**10
"""Size of a request's path and headers."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How much a server takes on, and what it logs.

    Raises `RequestError` for numbers that have no such meaning.
    """

    host: str = option("127.0.0.1", MACHINE, "Address to listen on; 0.0.0.0: all addresses of the machine.")
    port: int = option(8080, MACHINE, "Port to listen on; 0: a free one.", least=0)
    parallel: int = option(16, MACHINE, "Requests that are computed at the same time.", least=1)
    queue: int = option(256, MACHINE, "Requests that may wait besides those; the next one gets status 429.", least=0)
    context: int | None = option(
        None, MACHINE, "Tokens of a prompt and its answer together. Default: the positions of the model.", least=2
    )
    timeout: float = option(600.0, MACHINE, "Seconds that a request may take.")
    connections: int = option(512, MACHINE, "Connections that may be open; one more is refused.", least=1)
    client_timeout: float = option(
        60.0, MACHINE, "Seconds to wait for a client to send its request, and to read what it was sent."
    )
    drain: float = option(30.0, MACHINE, "Seconds that current requests have once the server is told to stop.")
    max_masks: int = option(64, MACHINE, "Names of masks that clients may add.", least=1)
    log_prompts: bool = option(False, OUTPUT, "Write prompts and answers into the log.")

    traces: bool = option(
        False, OUTPUT, "Send traces by OpenTelemetry to the address in the variable OTEL_EXPORTER_OTLP_ENDPOINT."
    )

    def __post_init__(self) -> None:
        for name, least in (("parallel", 1), ("queue", 0), ("connections", 1), ("max_masks", 1), ("context", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"{name}= must be {least} or more, not {value}")
        if not 0 <= self.port <= 65535:
            raise RequestError(f"port= must be from 0 to 65535, not {self.port}")
        for name in ("timeout", "client_timeout"):
            if not 0 < getattr(self, name) < 1e9:
                raise RequestError(f"{name}= must be above 0 seconds, not {getattr(self, name):g}")
        if not 0 <= self.drain < 1e9:
            raise RequestError(f"drain= must be 0 seconds or more, not {self.drain:g}")


@dataclass(frozen=True)
class Access:
    """Who may ask for what.

    Attributes:
        keys: a client sends one of these as `Authorization: Bearer KEY`; with none, every client may ask.
        admin_keys: keys that may also add and remove masks; with none, no client may.

    Raises `RequestError` for a key that a header cannot hold.
    """

    keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in (*self.keys, *self.admin_keys):
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise RequestError("a key is printable ASCII without blanks, and not empty")
