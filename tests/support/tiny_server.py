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

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.app import Served, make_app
from layercoop_fast.serving.board import Predictions
from layercoop_fast.serving.engine import Engine
from layercoop_fast.serving.masks import NamedMasks
from layercoop_fast.serving.options import MOST_HEADER_BYTES, Access, ServerOptions

L = 5


@dataclass
class Server:
    """One that answers."""

    url: str
    model: LayerSkipModel
    engine: Engine
    http: httpx.Client
    openai: openai.OpenAI

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.http.post(path, content=json.dumps(body), headers=headers, **options)  # any text, escaped

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
) -> Iterator[Server]:
    """Serve a checkpoint while the block runs."""
    options = options or ServerOptions()
    model = LayerSkipModel.from_pretrained(folder)
    found = NamedMasks(model, "tiny", masks or {"fast": "1,3"}, options.max_masks)
    drafted = None if draft is None else found.add("draft", draft)[0].halves
    predicted = None if predictions is None else predictions(model)
    app = make_app(Served(model, found, options, access or Access(), drafted, predicted, str(folder)))
    config = uvicorn.Config(
        app, http="h11", ws="none", log_config=None, h11_max_incomplete_event_size=MOST_HEADER_BYTES
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    with ExitStack() as closing:
        http = closing.enter_context(httpx.Client(base_url=url, timeout=60))
        client = closing.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60))
        try:
            yield Server(url, model, app.state.engine, http, client)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
