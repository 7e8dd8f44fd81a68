"""Workers in threads of the test's own process: the real worker behind a transport that can lose it at will."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from layercoop_fast.workers.messages import Message, pack, unpack
from layercoop_fast.workers.worker import serve

Spoil = Callable[[int, Message], "Message | str | None"]
"""(place, message to the driver) → what the driver gets instead; None: the worker is lost there; "drop": nothing."""


@dataclass
class ThreadTransport:
    """A `Transport` over threads. `spoil` sees each message to the driver, and may change it or lose the worker."""

    n_workers: int = 2
    threads: int = 1
    spoil: Spoil = lambda place, message: message
    shares: dict[str, int] = field(default_factory=lambda: {"": 2})
    started: list[int] = field(default_factory=list)
    closed: int = 0

    def __post_init__(self) -> None:
        self._outbox: queue.SimpleQueue[tuple[int, int, bytes]] = queue.SimpleQueue()
        self._inboxes: dict[int, queue.SimpleQueue[bytes | None]] = {}
        self._lives: dict[int, int] = {}

    def start(self, place: int) -> None:
        self.started.append(place)
        life = self._lives[place] = self._lives.get(place, 0) + 1
        inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inboxes[place] = inbox

        def receive() -> bytes:
            message = inbox.get()
            if message is None:
                raise SystemExit
            return message

        def run() -> None:
            with suppress(SystemExit):
                serve(receive, lambda message: self._outbox.put((place, life, message)))

        threading.Thread(target=run, daemon=True).start()

    def send(self, place: int, message: bytes) -> None:
        if place in self._inboxes:
            self._inboxes[place].put(message)

    def receive(self, seconds: float) -> list[tuple[int, bytes | None]]:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                place, life, message = self._outbox.get(timeout=left)
            except queue.Empty:
                return []
            if place not in self._inboxes or life != self._lives[place]:
                continue  # sent by a worker that the test has lost
            answer = self.spoil(place, unpack(message))
            if answer == "drop":
                continue
            if answer is None:
                self._inboxes.pop(place).put(None)
                return [(place, None)]
            assert isinstance(answer, Message)
            return [(place, pack(answer.kind, answer.about, **answer.arrays))]
        return []

    def why_lost(self, place: int) -> str:
        return "pulled out of the wall"

    def close(self) -> None:
        self.closed += 1
        for inbox in self._inboxes.values():
            inbox.put(None)
        self._inboxes.clear()


def opening(path: object, **changed: Any) -> dict[str, Any]:
    """How workers open a checkpoint."""
    return {
        "name": str(path),
        "dtype": "auto",
        "device": "cpu",
        "trust_remote_code": False,
        "blocks": None,
        **changed,
    }
