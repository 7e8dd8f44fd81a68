"""A server on a free port of this machine, over a tiny model, as clients meet it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.app import Served, make_app
from layercoop_fast.serving.board import Predictions
from layercoop_fast.serving.connections import config_of
from layercoop_fast.serving.engine import Engine
from layercoop_fast.serving.masks import NamedMasks
from layercoop_fast.serving.options import Access, ServerOptions

L = 5


@dataclass
class Server:
    """One that answers."""

    url: str
    model: LayerSkipModel
    engine: Engine
    uvicorn: uvicorn.Server
    http: httpx.Client
    openai: openai.OpenAI

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.http.post(path, content=json.dumps(body), headers=headers, **options)  # any text, escaped

    @contextmanager
    def held(self) -> Iterator[None]:
        """No token is computed while the block runs."""
        begun, go_on = threading.Event(), threading.Event()
        thread = threading.Thread(
            target=lambda: self.model.batcher.between_steps(lambda: (begun.set(), go_on.wait(60)))
        )
        thread.start()
        assert begun.wait(60)
        try:
            yield
        finally:
            go_on.set()
            thread.join()

    def at_rest(self) -> bool:
        """Wait until nothing is under way and no page is held but for later requests; whether that comes."""
        for _ in range(500):
            if self.engine.under_way == 0 and self.model.batcher.idle:
                self.model.forget()
                return self.model.executor.pool.used == 0
            time.sleep(0.01)
        return False


@contextmanager
def serving(
    folder: Path,
    options: ServerOptions | None = None,
    access: Access | None = None,
    masks: dict[str, str] | None = None,
    predictions: Callable[[LayerSkipModel], Predictions] | None = None,
    draft: str | None = None,
    send_buffer: int | None = None,
    prepared: Callable[[FastAPI], None] = lambda app: None,
) -> Iterator[Server]:
    """Serve a checkpoint while the block runs; `send_buffer`: bytes that wait in the system for a client to read."""
    options = options or ServerOptions()
    model = LayerSkipModel.from_pretrained(folder)
    found = NamedMasks(model, "tiny", masks or {"fast": "1,3"}, options.max_masks)
    drafted = None if draft is None else found.add("draft", draft)[0].halves
    predicted = None if predictions is None else predictions(model)
    app = make_app(Served(model, found, options, access or Access(), drafted, predicted, str(folder)))
    prepared(app)
    server = uvicorn.Server(config_of(app, options))
    listening = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # which its connections have too
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    with ExitStack() as closing:
        http = closing.enter_context(httpx.Client(base_url=url, timeout=60))
        client = closing.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60))
        try:
            yield Server(url, model, app.state.engine, server, http, client)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
