"""Streamed completions over plain sockets, from any server that speaks OpenAI's interface.

    answers, seconds = ask_together([Ask(url, "smollm2", "Once upon a time", 128)] * 8)

A client shares the processors with the server that it measures. This one takes some ten microseconds for each token
(the `openai` package takes several hundred): it notes when bytes came, and reads them once all answers are there.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise
from urllib.parse import urlsplit

SECONDS = 300
EVENT, LAST = b"data: {", b"data: [DONE]"
TOPICS = (
    "a lighthouse keeper who finds a letter",
    "how a suspension bridge carries its load",
    "repairing a bicycle tube on a wet road",
    "what sailors ate two hundred years ago",
    "a clockmaker and her daughter",
    "why volcanoes stand in rows",
    "a railway over a mountain pass",
    "how violins are varnished",
)


def prompts(count: int, first: int = 0) -> list[str]:
    """Prompts that have no beginning in common, so that no server finds one of them computed already.

    The small real model goes on for more than 128 tokens after each. Behind the token that ends a text servers differ:
    ours writes what comes, also tokens without text, of which a client sees only that the next one comes late;
    llama.cpp's takes the next best token in place of such a one.
    """
    return [
        f"Essay {number}: {TOPICS[number % len(TOPICS)]}.\n\nIntroduction\n\n" for number in range(first, first + count)
    ]


@dataclass(frozen=True)
class Ask:
    """A streamed completion to ask for: greedy, `tokens` tokens whatever they are."""

    url: str
    model: str
    prompt: str
    tokens: int


@dataclass
class Answer:
    """One that came.

    Attributes:
        text: all of it.
        tokens: as the server counted them.
        first: seconds to the first token.
        last: seconds to the last one, whether it has text or not.
        between: seconds from each token to the next; 0 for those that came together. Those without text count as one
            with what follows.
    """

    text: str
    tokens: int
    first: float
    last: float
    between: list[float]


class _Stream:
    """A request under way, and what came of it."""

    def __init__(self, ask: Ask) -> None:
        place = urlsplit(ask.url)
        asked = {"model": ask.model, "prompt": ask.prompt, "max_tokens": ask.tokens, "temperature": 0}
        asked |= {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        body = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        self.socket = socket.create_connection((str(place.hostname), int(place.port or 80)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = time.perf_counter()
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.socket.setblocking(False)
        self.came: list[tuple[float, bytes]] = []

    def read(self) -> bool:
        """Take what is there; whether more will come."""
        got = self.socket.recv(1 << 16)
        self.came.append((time.perf_counter(), got))
        if got and LAST not in b"".join(each for _, each in self.came[-2:]):
            return True
        self.socket.close()
        return False

    def answer(self) -> Answer:
        """Raises `RuntimeError` with what the server said, where it is no whole answer."""
        raw = b"".join(each for _, each in self.came)
        if LAST not in raw:
            raise RuntimeError(f"no whole answer: {raw[:300]!r}")
        ends = list(accumulate(len(each) for _, each in self.came))
        text, times, tokens, last, at = "", [], 0, 0.0, raw.find(EVENT)
        while at >= 0:
            end = raw.index(b"\n", at)
            event = json.loads(raw[at + len(EVENT) - 1 : end])
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            if event.get("choices"):
                last = self.came[bisect_left(ends, end)][0]
                if piece := event["choices"][0]["text"]:
                    text += piece
                    times.append(last)
            at = raw.find(EVENT, end)
        between = [after - before for before, after in pairwise(times)]
        return Answer(text, tokens, times[0] - self.began, last - self.began, between)


def ask_together(asks: list[Ask]) -> tuple[list[Answer], float]:
    """Ask all at once; the answers in order, and the seconds until the last one was whole."""
    began = time.perf_counter()
    streams = [_Stream(ask) for ask in asks]
    with selectors.DefaultSelector() as waiting:
        for stream in streams:
            waiting.register(stream.socket, selectors.EVENT_READ, stream)
        while waiting.get_map():
            ready = waiting.select(SECONDS)
            if not ready:
                raise RuntimeError(f"nothing came for {SECONDS} seconds")
            for key, _ in ready:
                if not key.data.read():
                    waiting.unregister(key.fileobj)
    seconds = time.perf_counter() - began
    answers = [stream.answer() for stream in streams]
    for ask, answer in zip(asks, answers, strict=True):
        if answer.tokens != ask.tokens:
            raise RuntimeError(f"{ask.url} answered {answer.tokens} tokens instead of {ask.tokens}")
    return answers, seconds
