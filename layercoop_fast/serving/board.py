"""The layer board at `/`: one page on which people switch blocks off and see what that does.

The page is one file that loads nothing from elsewhere. It asks the server for what it shows: the masks by name, what a
surrogate predicts for a mask (at once, where the server was given worths), and what the mask really is worth on a few
windows of built-in text (measured when somebody asks, between the steps of other requests).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from layercoop_fast.errors import LayercoopError, RequestError
from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.halves import PARTS, WHOLE, Halves
from layercoop_fast.masks.text import text_of
from layercoop_fast.masks.types import Masks
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.search.base import finite_or_none
from layercoop_fast.search.best_masks import best_masks
from layercoop_fast.serving.failures import RefusedError, bad_request
from layercoop_fast.surrogate.ridge import RidgeSurrogate
from layercoop_fast.texts.calibration import cut_windows, read_text

_WINDOWS, _TOKENS = 4, 128
_REMEMBERED = 1024
_MOST_WAITING = 8
Result = TypeVar("Result")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Toggled(BaseModel):
    """A mask as the board has it: of each block 3 where it is kept, 1 its attention alone, 2 its MLP alone, 0 none."""

    model_config = ConfigDict(extra="forbid")
    halves: Annotated[list[Annotated[StrictInt, Field(ge=0, le=WHOLE)]], Field(min_length=1, max_length=100_000)]


class Size(BaseModel):
    """How many players to remove."""

    model_config = ConfigDict(extra="forbid")
    remove: Annotated[StrictInt, Field(ge=1, lt=100_000)]


@dataclass(eq=False)
class Predictions:
    """What is expected of masks: a pairwise ridge fitted to measured worths, over blocks or their halves.

    Args:
        worths: measured by `layercoop-fast evaluate` or `shapley`.
        n_layers: blocks of the model L; the worths' players are L blocks or 2L halves.

    Raises `RequestError` where they are not, or cannot be fitted to.
    """

    worths: Worths
    n_layers: int
    surrogate: RidgeSurrogate = field(init=False)

    def __post_init__(self) -> None:
        n = self.worths.masks.shape[1]
        if n not in (self.n_layers, 2 * self.n_layers):
            raise RequestError(
                f"the worths are of {n} players, and the model has {self.n_layers} blocks, {2 * self.n_layers} halves"
            )
        finite = np.isfinite(self.worths.worths)
        self.surrogate = RidgeSurrogate.fit(self.worths.masks[finite], self.worths.worths[finite])

    @property
    def by_halves(self) -> bool:
        """Whether the players are halves of blocks."""
        return self.surrogate.n_players == 2 * self.n_layers

    def values(self) -> list[list[float]]:
        """The Shapley value of each block's players on the surrogate, [L][1 or 2]."""
        found = self.surrogate.shapley().reshape(self.n_layers, -1)
        return [[float(each) for each in row] for row in found]

    def predict(self, halves: Halves) -> float | None:
        """The worth expected of a mask uint8 [L]; None where it takes halves apart and the players are blocks."""
        mask = self._players(halves)
        return None if mask is None else float(self.surrogate(mask[None])[0])

    def best(self, remove: int) -> tuple[Halves, float]:
        """The mask uint8 [L] of the highest expected worth that removes so many players, and that worth."""
        found = best_masks(self.surrogate.link_game, remove, time_limit=2.0)
        mask = found.masks[0].reshape(self.n_layers, -1)
        bits = mask[:, 0] * 1 + mask[:, -1] * 2
        return bits.astype(np.uint8), float(self.surrogate(found.masks[:1])[0])

    def _players(self, halves: Halves) -> Masks | None:
        if self.by_halves:
            players: Masks = np.stack([halves & 1, halves & 2], axis=1).reshape(-1) > 0
            return players
        return halves > 0 if np.isin(halves, (0, WHOLE)).all() else None


class Meter:
    """Measures masks on a few windows of built-in text, one window between two steps of other requests.

    Args:
        model: what computes; it needs a tokenizer.
    """

    def __init__(self, model: LayerSkipModel) -> None:
        self._model = model
        self._ids: list[list[int]] | None = None
        self._known: dict[bytes, float] = {}

    def nll(self, halves: Halves) -> float:
        """Mean negative log-likelihood of a mask uint8 [L], in nats a token. `RequestError` without a tokenizer."""
        key = halves.tobytes()
        if key not in self._known:
            if self._ids is None:
                if self._model.tokenizer is None:
                    raise RequestError("this checkpoint has no tokenizer, and so no text to measure on")
                tokens = min(_TOKENS, self._model.executor.max_tokens or _TOKENS)
                self._ids = cut_windows(read_text("builtin"), self._model.tokenizer, _WINDOWS, tokens).tolist()
            losses = [self._model.batcher.between_steps(partial(self._window, halves, ids)) for ids in self._ids]
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = sum(losses) / len(losses)
        return self._known[key]

    def _window(self, halves: Halves, ids: list[int]) -> float:
        executor = self._model.executor
        sequence = executor.sequence(halves)
        try:
            logits = executor.run([Chunk(sequence, ids[:-1], len(ids) - 1)])
        finally:
            sequence.release()
        return float(torch.nn.functional.cross_entropy(logits.float().cpu(), torch.tensor(ids[1:])))


def add_board(
    app: FastAPI, model: LayerSkipModel, name: str, path: str, predictions: Predictions | None, key: list[Any]
) -> None:
    """Add the page and what it asks for; `key` are the dependencies that guard the rest of the server."""
    meter = Meter(model)
    # One measurement or search at a time: they share the processors with the answers.
    turn = asyncio.Semaphore(1)
    waiting = 0

    async def alone(work: Callable[..., Result], *arguments: Any) -> Result:
        nonlocal waiting
        if waiting >= _MOST_WAITING:
            raise RefusedError(429, "too many ask the board at once", "board_busy", headers={"Retry-After": "2"})
        waiting += 1
        try:
            async with turn:
                return await asyncio.to_thread(work, *arguments)
        finally:
            waiting -= 1

    page = files("layercoop_fast.serving").joinpath("board.html").read_text(encoding="utf-8")

    def read(asked: Toggled) -> Halves:
        if len(asked.halves) != model.n_layers:
            raise bad_request(f"the model has {model.n_layers} blocks, not {len(asked.halves)}", "halves")
        try:
            return model.mask(np.array(asked.halves, dtype=np.uint8))
        except RequestError as error:
            raise bad_request(str(error), "halves") from error

    @app.get("/", include_in_schema=False)
    async def board() -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    @app.get("/board/about", dependencies=key, include_in_schema=False)
    async def about() -> dict[str, Any]:
        return {
            "model": name,
            "path": path,
            "layers": model.n_layers,
            "parts": list(PARTS),
            "values": None if predictions is None else predictions.values(),
            "by_halves": predictions is not None and predictions.by_halves,
            "utility": None if predictions is None else predictions.worths.fingerprints.get("utility"),
            "chat": bool(getattr(model.tokenizer, "chat_template", None)),
        }

    @app.post("/board/mask", dependencies=key, include_in_schema=False)
    async def mask(asked: Toggled) -> dict[str, Any]:
        halves = read(asked)
        size = model.size(halves)
        predicted = None if predictions is None else predictions.predict(halves)
        return {
            "removed": text_of(halves),
            "parameters": size.parameters,
            "bytes": size.n_bytes,
            "predicted": None if predicted is None else finite_or_none(predicted),
        }

    @app.post("/board/measure", dependencies=key, include_in_schema=False)
    async def measure(asked: Toggled) -> dict[str, Any]:
        halves = read(asked)
        try:
            nll = await alone(meter.nll, halves)
            full = await alone(meter.nll, model.mask())
        except RequestError as error:
            raise bad_request(str(error)) from error
        except LayercoopError as error:
            raise RefusedError(503, str(error), "busy") from error
        measured = finite_or_none(nll)
        return {"nll": measured, "ratio": 0.0 if measured is None else math.exp(full - measured)}

    @app.post("/board/best", dependencies=key, include_in_schema=False)
    async def best(asked: Size) -> dict[str, Any]:
        if predictions is None:
            raise bad_request("there is nothing to predict by: start the server with worths")
        try:
            halves, worth = await alone(predictions.best, asked.remove)
        except RequestError as error:
            raise bad_request(str(error), "remove") from error
        return {"halves": halves.tolist(), "predicted": finite_or_none(worth)}
