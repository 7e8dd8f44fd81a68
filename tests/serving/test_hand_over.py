"""The engine begins a step once what came of the last one is on its way to the clients."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from tiny_server import L, serving

from layercoop_fast.serving import hand_over
from layercoop_fast.serving.hand_over import HandOver

PROMPT = "The tide went out"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take all processors, and wait for the event loop as long as it takes."""
    monkeypatch.setattr(hand_over.machine, "processors", lambda: 1)
    monkeypatch.setattr(hand_over, "MOST_SECONDS", 60.0)


async def beside(work: Callable[[], None]) -> None:
    """Do some work on another thread, while the event loop goes on."""
    await asyncio.get_running_loop().run_in_executor(None, work)


@pytest.mark.usefixtures("patient")
def test_each_token_is_sent_before_the_next_one_is_computed(folder: Path) -> None:
    computed: list[int] = []

    def watch(app: FastAPI) -> None:
        executor = app.state.engine.model.executor

        class Watching:
            def __init__(self, inner: Any) -> None:
                self.inner = inner

            async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
                async def seen(message: Any) -> None:
                    if message.get("body", b"").startswith(b'data: {"id"'):
                        computed.append(executor.computed)
                    await send(message)

                await self.inner(scope, receive, seen)

        app.add_middleware(Watching)

    with serving(folder, prepared=watch) as server:
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "logprobs": 0}  # so that every token is an event
        events = list(server.openai.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}))
    assert len(events) == 20
    assert computed == [(len(PROMPT) + number) * L for number in range(20)]


@pytest.mark.usefixtures("patient")
def test_what_the_loop_is_told_wakes_is_waited_for() -> None:
    order: list[str] = []

    async def run() -> None:
        news = asyncio.Event()

        async def client() -> None:
            await news.wait()
            order.append("sent")

        sending = asyncio.ensure_future(client())
        await asyncio.sleep(0)
        hands = HandOver(asyncio.get_running_loop(), threads=1)
        await beside(lambda: (hands(news.set), order.append("next")))  # type: ignore[func-returns-value, arg-type]
        await sending

    asyncio.run(run())
    assert order == ["sent", "next"]


@pytest.mark.parametrize(("threads", "most"), [(1, 0.05), (0, 60.0)])
def test_a_loop_that_is_busy_holds_no_step_for_long(monkeypatch: pytest.MonkeyPatch, threads: int, most: float) -> None:
    monkeypatch.setattr(hand_over.machine, "processors", lambda: 1)
    monkeypatch.setattr(hand_over, "MOST_SECONDS", most)

    async def run() -> float:
        took: list[float] = []
        hands = HandOver(asyncio.get_running_loop(), threads)

        def step() -> None:
            began = time.perf_counter()
            hands(lambda: None)
            took.append(time.perf_counter() - began)

        thread = threading.Thread(target=step)
        thread.start()
        thread.join(30)  # on the loop's own thread: it answers nobody meanwhile
        assert took, "the step waits for a loop that is busy"
        return took[0]

    assert asyncio.run(run()) < 10
