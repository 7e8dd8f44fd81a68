"""The routes of the server."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from layercoop_fast._version import __version__
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving import schemas
from layercoop_fast.serving.answers import Answer, context_of, turns_as_tokens
from layercoop_fast.serving.board import Predictions, add_board
from layercoop_fast.serving.choices import Chat, Completion
from layercoop_fast.serving.edge import Edge
from layercoop_fast.serving.engine import Engine, Ticket
from layercoop_fast.serving.failures import RefusedError, add_failures
from layercoop_fast.serving.masks import NamedMask, NamedMasks
from layercoop_fast.serving.metrics import Metrics
from layercoop_fast.serving.options import Access, ServerOptions
from layercoop_fast.serving.protocol import Asked, ChatRequest, CompletionRequest, MaskRequest, TokenizeRequest
from layercoop_fast.serving.replicas import Replica
from layercoop_fast.serving.responses import ResponseAnswer, ResponseRequest
from layercoop_fast.serving.schemas import described
from layercoop_fast.serving.traces import add_traces

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Served:
    """What the routes answer from.

    Attributes:
        model: computes.
        masks: by name.
        options, access: of the server.
        draft: uint8 [L], what drafts of every request run; None for none.
        predictions: of the board; None where the server was given no worths.
        path: of the checkpoint, for the commands that the board shows.
        replica: which one of several servers at one address this is; None where it is alone.
    """

    model: LayerSkipModel
    masks: NamedMasks
    options: ServerOptions
    access: Access
    draft: Halves | None = None
    predictions: Predictions | None = None
    path: str = ""
    replica: Replica | None = None


def make_app(served: Served) -> FastAPI:
    """The server as an ASGI application; it computes from its start-up to its shut-down."""
    engine: Engine
    metrics = Metrics(served.model, lambda: engine.under_way, "" if served.replica is None else served.replica.name)
    engine = Engine(served.model, served.options, metrics)
    model, masks, access = served.model, served.masks, served.access

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start(asyncio.get_running_loop())
        yield
        engine.close()

    # No pages of documentation: they would load scripts from elsewhere. `/openapi.json` is there.
    app = FastAPI(
        title="layercoop-fast",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None if served.access.keys else "/openapi.json",
        responses=schemas.FAILURES,
    )
    app.state.engine = engine
    app.add_middleware(Edge, seconds=served.options.client_timeout)
    add_failures(app)

    def has_key(request: Request) -> None:
        if access.keys and not _allowed(request, (*access.keys, *access.admin_keys)):
            raise RefusedError(401, "this server asks for a key: Authorization: Bearer KEY", "invalid_api_key")

    def has_admin_key(request: Request) -> None:
        if not access.admin_keys:
            raise RefusedError(
                403, "masks are not added here: the server was started without an admin key", "no_admin_key"
            )
        if not _allowed(request, access.admin_keys):
            raise RefusedError(401, "this asks for the admin key: Authorization: Bearer KEY", "invalid_api_key")
        if served.replica is not None and served.replica.count > 1:
            raise RefusedError(
                409,
                f"{served.replica.count} replicas answer here, and a change of masks would reach one of them: name the "
                "masks when the server is started",
                "masks_are_fixed",
            )

    def mask_of(asked: Asked) -> NamedMask:
        return masks.find(asked.model) if asked.layer_mask is None else masks.unnamed(asked.model, asked.layer_mask)

    async def answered(request: Request, kind: type[Answer], asked: Asked) -> Response:
        mask = mask_of(asked)
        # Long prompts take their time to become tokens: not on the event loop.
        answer = await asyncio.to_thread(kind, asked, mask, model, served.options, served.draft)
        label = mask.model if masks.has(mask) else masks.unnamed_model  # metrics know current names alone
        ticket = engine.submit(label, answer.requests)
        request.state.told = {"model": mask.model, "prompt_tokens": answer.prompt_tokens, "ticket": ticket}
        if served.options.log_prompts:
            request.state.told["asked"] = asked.model_dump(exclude_unset=True)
        if asked.stream:
            events = answer.stream(ticket)
            first = await _or_gone(request, anext(events), ticket)  # what fails at once is told by a status
            return StreamingResponse(
                _with_first(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        return JSONResponse(await _or_gone(request, answer.whole(ticket), ticket))

    key = [Depends(has_key)]

    @app.post("/v1/completions", dependencies=key, responses=described(schemas.CompletionBody, streams=True))
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        """Go on with a text, or several."""
        return await answered(request, Completion, asked)

    @app.post("/v1/chat/completions", dependencies=key, responses=described(schemas.ChatBody, streams=True))
    async def chats(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation."""
        return await answered(request, Chat, asked)

    @app.post("/v1/responses", dependencies=key, responses=described(schemas.ResponseBody, streams=True))
    async def responses(request: Request, asked: ResponseRequest) -> Response:
        """Answer a conversation, in OpenAI's newer form."""
        return await answered(request, ResponseAnswer, asked)

    @app.get("/v1/models", dependencies=key, response_model=schemas.ModelsBody)
    async def models() -> dict[str, Any]:
        """The base model, and every mask that has a name."""
        return {"object": "list", "data": [_about(served, mask) for mask in masks.all()]}

    @app.get("/v1/models/{name}", dependencies=key, response_model=schemas.ModelBody)
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return _about(served, masks.find(name))

    @app.post(
        "/v1/masks",
        dependencies=[Depends(has_admin_key)],
        status_code=201,
        response_model=schemas.AddedBody,
    )
    async def add_mask(asked: MaskRequest) -> dict[str, Any]:
        """Give a mask a name."""
        mask, left = masks.add(asked.name, asked.layer_mask)
        for each in left:
            metrics.forget(each.model)
        return {**_about(served, mask), "left": [each.model for each in left]}

    @app.delete("/v1/masks/{name}", dependencies=[Depends(has_admin_key)], response_model=schemas.RemovedBody)
    async def remove_mask(name: str) -> dict[str, Any]:
        """Take a mask's name away; what is being answered under it goes on."""
        gone = masks.remove(name)
        metrics.forget(gone.model)
        return {"id": gone.model, "object": "model", "deleted": True}

    @app.post("/tokenize", dependencies=key, response_model=schemas.TokensBody)
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        """A text, or a conversation, as tokens."""
        if asked.model is not None:
            masks.find(asked.model)
        work = _tokens_of_text if asked.prompt is not None else _tokens_of_messages
        tokens = await asyncio.to_thread(work, model, asked)
        return {
            "count": len(tokens),
            "max_model_len": context_of(model, served.options),
            "tokens": tokens,
        }

    @app.get("/health", responses={**described(schemas.HealthBody), 503: {"model": schemas.HealthBody}})
    async def health() -> Response:
        """200 while requests are answered, 503 once the engine has failed."""
        failed = engine.failed is not None
        return JSONResponse({"status": "failed" if failed else "ok"}, status_code=503 if failed else 200)

    @app.get(
        "/metrics",
        dependencies=key,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics_page() -> Response:
        """For Prometheus."""
        return Response(await asyncio.to_thread(metrics.text), media_type=metrics.content_type)

    add_board(app, model, masks.base, served.path, served.predictions, key)
    if served.options.traces:
        add_traces(app)
    return app


def _tokens_of_text(model: LayerSkipModel, asked: TokenizeRequest) -> list[int]:
    assert asked.prompt is not None
    return list(model.tokens(asked.prompt))


def _tokens_of_messages(model: LayerSkipModel, asked: TokenizeRequest) -> list[int]:
    return list(turns_as_tokens(model, [message.turn() for message in asked.messages]))


def _about(served: Served, mask: NamedMask) -> dict[str, Any]:
    """A mask as a model in OpenAI's list, with what it keeps and what that takes."""
    size = served.model.size(mask.halves)
    return {
        "id": mask.model,
        "object": "model",
        "created": mask.created,
        "owned_by": "layercoop-fast",
        "max_model_len": context_of(served.model, served.options),
        "removed": served.masks.text(mask),
        "layers_kept": int((mask.halves > 0).sum()),
        "layers": served.model.n_layers,
        "parameters": size.parameters,
        "bytes": size.n_bytes,
    }


def _allowed(request: Request, keys: tuple[str, ...]) -> bool:
    """Whether the request brings one of the keys; the time that takes says nothing of which, or how nearly."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    found = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    return scheme.lower() == "bearer" and any(found)


async def _or_gone(request: Request, work: Awaitable[Result], ticket: Ticket) -> Result:
    """The result of some work, unless its client goes away first: then the ticket ends, and nobody is answered."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise RefusedError(499, "the client went away", "client_gone")
        return doing.result()
    finally:
        leaving.cancel()
        if not doing.done():
            doing.cancel()
            ticket.cancel()
        elif doing.cancelled() or doing.exception() is not None:
            ticket.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _with_first(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()  # type: ignore[attr-defined]
