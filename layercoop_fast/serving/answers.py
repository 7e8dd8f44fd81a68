"""What a client asks, as requests of the runtime; answers and streams are made in `choices.py` and `responses.py`.

The server-sent events of chats and completions are those of `ChoiceAnswer.stream`, of `/v1/responses` those of
`ResponseAnswer.stream`. Here is what both have in common: `Answer`, and how a body becomes bytes.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.conversation import chat_tokens
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.requests import Request, read_stops
from layercoop_fast.serving.engine import Ticket
from layercoop_fast.serving.failures import RefusedError, bad_request
from layercoop_fast.serving.masks import NamedMask
from layercoop_fast.serving.options import MOST_ANSWERS, ServerOptions
from layercoop_fast.serving.protocol import Asked, Turn

# Made once: `json.dumps` makes another one for each call that is not by its defaults.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def sampling_of(asked: Asked) -> Sampling:
    """How tokens are chosen; the defaults are OpenAI's (temperature 1). `RefusedError` 400 for what has no meaning."""
    given = {name: getattr(asked, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    kept = {name: value for name, value in given.items() if value is not None}
    kept["top_k"] = max(0, kept.get("top_k", 0))  # -1 is vLLM's word for none
    temperature = 1.0 if asked.temperature is None else asked.temperature
    seed = None if asked.seed is None else asked.seed % 2**64
    try:
        return Sampling(temperature, seed=seed, **kept)
    except RequestError as error:
        raise bad_request(str(error)) from error


class Answer(ABC):
    """One call of a client: what is computed for it, and the bodies that it gets.

    Args:
        asked: the request.
        mask: what it runs under.
        model: what computes.
        options: of the server.

    Raises `RefusedError` 400 for what cannot be computed.
    """

    id_prefix: ClassVar[str]
    prompt_field: ClassVar[str]

    def __init__(
        self, asked: Asked, mask: NamedMask, model: LayerSkipModel, options: ServerOptions, draft: Halves | None
    ) -> None:
        self.asked, self.mask, self.options = asked, mask, options
        self._model = model
        self.id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.choices = self._each()
        count = self._count()
        if self.choices * count > MOST_ANSWERS:  # before any of them becomes tokens
            raise bad_request(
                f"{count} prompts with n={self.choices} are {self.choices * count} answers: at most {MOST_ANSWERS} in "
                "a request",
                "n",
            )
        prompts = self._prompts()
        try:
            stops = read_stops(asked.stop or (), model.tokenizer)
        except RequestError as error:
            raise bad_request(str(error), "stop") from error
        if asked.draft is False or self._logprobs() is not None:
            draft = None
        draft = None if draft is None else model.draft_within(draft, mask.halves)
        sampling, call = sampling_of(asked), object()
        self.prompt_tokens = sum(len(prompt) for prompt in prompts)
        self.requests = [
            Request(
                prompt,
                mask.halves,
                self._room(len(prompt)),
                sampling,
                stops,
                bool(asked.ignore_eos),
                index,
                draft,
                call,
                self._logprobs(),
            )
            for number, prompt in enumerate(prompts)
            for index in range(number * self.choices, (number + 1) * self.choices)
        ]

    @abstractmethod
    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    @abstractmethod
    def stream(self, ticket: Ticket) -> AsyncIterator[bytes]:
        """The server-sent events of a streamed answer; closing this ends what is still computed.

        Raises `RefusedError` for what fails before the first event.
        """

    def _count(self) -> int:
        """How many prompts there are."""
        return 1

    def _each(self) -> int:
        """How many answers each prompt gets."""
        return 1

    @abstractmethod
    def _prompts(self) -> list[tuple[int, ...]]:
        """The tokens of each prompt."""

    @abstractmethod
    def _most(self) -> int | None:
        """How many new tokens the client asks for at most; None for as many as fit."""

    def _logprobs(self) -> int | None:
        """How many alternatives of each token the client asks for; None for no probabilities at all."""
        return None

    def _room(self, prompt: int) -> int:
        limit = context_of(self._model, self.options)
        most = self._most()
        if limit is None:
            limit = self._model.batcher.most_tokens(self.mask.halves)
        elif most is None:  # as many as fit, of positions and of memory
            limit = max(prompt + 1, min(limit, self._model.batcher.most_tokens(self.mask.halves)))
        if prompt + 1 > limit or (most is not None and prompt + most > limit):
            new = f"and {most} new ones " if most is not None else ""
            raise RefusedError(
                400,
                f"this server takes {limit} tokens of prompt and answer; the prompt has {prompt} {new}".rstrip()
                + ": shorten it, or ask for fewer",
                "context_length_exceeded",
                param=self.prompt_field,
            )
        return limit - prompt if most is None else most

    def usage(self, tokens: int, ticket: Ticket) -> dict[str, Any]:
        """What the answer took, in tokens; each prompt counts once, however many answers it has."""
        reused = sum(one.reused_tokens for one in ticket.runnings[:: self.choices])
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": min(reused, self.prompt_tokens)},
        }


def context_of(model: LayerSkipModel, options: ServerOptions) -> int | None:
    """How many tokens a prompt and its answer may have together: as the server or the model says, the fewer."""
    return min(filter(None, (options.context, model.executor.max_tokens)), default=None)


def turns_as_tokens(model: LayerSkipModel, turns: Sequence[Turn], param: str = "messages") -> tuple[int, ...]:
    """Tokens of a conversation that waits for its next answer; `RefusedError` 400 where the template refuses it."""
    try:
        return tuple(chat_tokens(model.tokenizer, list(turns)))
    except RequestError as error:
        raise bad_request(str(error), param) from error


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + encoded(body) + b"\n\n"


def encoded(body: dict[str, Any]) -> bytes:
    """A body as JSON; what is no character of UTF-8 becomes a question mark."""
    return _ENCODER.encode(body).encode("utf-8", "replace")
