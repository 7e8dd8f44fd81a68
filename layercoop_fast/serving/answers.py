"""From requests of OpenAI's interface to requests of the runtime, and from tokens back to its answers.

An answer is made of choices: `n` for each prompt, in order. Streams carry the same pieces one by one, as server-sent
events that end with `[DONE]`.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.conversation import chat_tokens
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.requests import Request, Step, read_stops
from layercoop_fast.runtime.stops import NO_CHARACTER
from layercoop_fast.search.base import finite_or_none
from layercoop_fast.serving.engine import Ticket
from layercoop_fast.serving.failures import RefusedError, bad_request
from layercoop_fast.serving.masks import NamedMask
from layercoop_fast.serving.options import MOST_ANSWERS, ServerOptions
from layercoop_fast.serving.protocol import Asked, ChatRequest, CompletionRequest, Message

# OpenAI's own default of completions.
_COMPLETION_TOKENS = 16
# Made once: `json.dumps` makes another one for each call that is not by its defaults.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


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

    object: str
    chunk_object: str
    id_prefix: str

    def __init__(
        self, asked: Asked, mask: NamedMask, model: LayerSkipModel, options: ServerOptions, draft: Halves | None
    ) -> None:
        self.asked, self.mask, self.options = asked, mask, options
        self._model = model
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.choices = asked.n or 1
        count = self._count()
        if self.choices * count > MOST_ANSWERS:  # before any of them becomes tokens
            raise bad_request(
                f"{count} prompts with n={self.choices} are {self.choices * count} answers: at most {MOST_ANSWERS} in "
                "a request",
                "n",
            )
        prompts = self._prompts()
        self._texts: dict[int, str] = {}
        self._offsets: dict[int, int] = {}
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

    def _count(self) -> int:
        """How many prompts there are."""
        return 1

    @abstractmethod
    def _prompts(self) -> list[tuple[int, ...]]:
        """The tokens of each prompt."""

    @abstractmethod
    def _most(self) -> int | None:
        """How many new tokens the client asks for at most; None for as many as fit."""

    @abstractmethod
    def _choice(self, index: int, text: str, reason: str | None, steps: Sequence[Step]) -> dict[str, Any]:
        """A choice of a whole answer."""

    @abstractmethod
    def _piece(
        self, index: int, text: str, reason: str | None, steps: Sequence[Step], *, first: bool
    ) -> dict[str, Any]:
        """A choice of a chunk of a stream."""

    def _logprobs(self) -> int | None:
        """How many alternatives of each token the client asks for; None for no probabilities at all."""
        return None

    def _text(self, token: int) -> str:
        """A token by itself: its text, or where it is no whole character its name in the vocabulary."""
        if token not in self._texts:
            tokenizer = self._model.tokenizer
            text = str(token) if tokenizer is None else str(tokenizer.decode([token]))
            if NO_CHARACTER in text and tokenizer is not None:
                text = str(tokenizer.convert_ids_to_tokens(token))
            self._texts[token] = text
        return self._texts[token]

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
                param="messages" if isinstance(self.asked, ChatRequest) else "prompt",
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

    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        steps: list[list[Step]] = [[] for _ in ticket.runnings]
        async for index, step in ticket.steps():
            steps[index].append(step)
        choices = await asyncio.to_thread(self._choices, steps)  # log-probabilities of long answers take their time
        usage = self.usage(sum(map(len, steps)), ticket)
        return {**self._head(self.object), "choices": choices, "usage": usage}

    def _choices(self, steps: Sequence[Sequence[Step]]) -> list[dict[str, Any]]:
        return [
            self._choice(index, "".join(step.text for step in each), _REASONS[str(each[-1].finish)], each)
            for index, each in enumerate(steps)
        ]

    async def stream(self, ticket: Ticket) -> AsyncIterator[bytes]:
        """The server-sent events of a streamed answer; closing this ends what is still computed."""
        begun: set[int] = set()
        count = 0
        with_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        head = self._head(self.chunk_object)
        # All pieces have the same frame, which is encoded once.
        before = b"data: " + _encoded({**head, "choices": []})[:-2]
        after = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        try:
            async for came in ticket.arrivals():
                count += len(came)
                events: list[bytes] = []
                for index, step in came:
                    if not step.text and step.finish is None and index in begun and self._logprobs() is None:
                        continue  # a part of a character, or of what may become a stop string
                    reason = None if step.finish is None else _REASONS[step.finish]
                    piece = self._piece(index, step.text, reason, [step], first=index not in begun)
                    begun.add(index)
                    events += before, _encoded(piece), after
                if events:
                    yield b"".join(events)
            if with_usage:
                yield _event({**head, "choices": [], "usage": self.usage(count, ticket)})
            yield b"data: [DONE]\n\n"
        except RefusedError as error:
            if not begun:
                raise  # nothing was sent yet: a status says it
            yield _event(error.body())
        finally:
            ticket.cancel()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.mask.model}


class Completion(Answer):
    """`POST /v1/completions`."""

    asked: CompletionRequest
    object = chunk_object = "text_completion"
    id_prefix = "cmpl"

    def _count(self) -> int:
        return len(self.asked.prompts())

    def _prompts(self) -> list[tuple[int, ...]]:
        try:
            return [self._model.tokens(prompt) for prompt in self.asked.prompts()]
        except RequestError as error:
            raise bad_request(str(error), "prompt") from error

    def _most(self) -> int | None:
        return _COMPLETION_TOKENS if self.asked.max_tokens is None else self.asked.max_tokens

    def _logprobs(self) -> int | None:
        return self.asked.logprobs

    def _choice(self, index: int, text: str, reason: str | None, steps: Sequence[Step]) -> dict[str, Any]:
        told = self._told(index, steps) if self.asked.logprobs is not None else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _told(self, index: int, steps: Sequence[Step]) -> dict[str, Any]:
        """OpenAI's older form: lists of tokens, of their log-probabilities, and of those of others."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            text, score = self._text(step.token), step.likelihood
            offset = self._offsets.get(index, 0)  # a stream goes on where its last piece ended
            self._offsets[index] = offset + len(text)
            assert score is not None
            own = [] if step.token in dict(score.top) else [(step.token, score.logprob)]
            found["tokens"].append(text)
            found["token_logprobs"].append(finite_or_none(score.logprob))
            found["top_logprobs"].append(
                {self._text(token): finite_or_none(value) for token, value in (*score.top, *own)}
            )
            found["text_offset"].append(offset)
        return found

    def _piece(
        self, index: int, text: str, reason: str | None, steps: Sequence[Step], *, first: bool
    ) -> dict[str, Any]:
        return self._choice(index, text, reason, steps)


class Chat(Answer):
    """`POST /v1/chat/completions`."""

    asked: ChatRequest
    object, chunk_object = "chat.completion", "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def _prompts(self) -> list[tuple[int, ...]]:
        return [messages_as_tokens(self._model, self.asked.messages)]

    def _most(self) -> int | None:
        return self.asked.max_completion_tokens or self.asked.max_tokens

    def _logprobs(self) -> int | None:
        return (self.asked.top_logprobs or 0) if self.asked.logprobs else None

    def _choice(self, index: int, text: str, reason: str | None, steps: Sequence[Step]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._told(steps), "finish_reason": reason}

    def _piece(
        self, index: int, text: str, reason: str | None, steps: Sequence[Step], *, first: bool
    ) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant", "content": text} if first else {"content": text}
        return {"index": index, "delta": delta, "logprobs": self._told(steps), "finish_reason": reason}

    def _told(self, steps: Sequence[Step]) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        content = []
        for step in steps:
            score = step.likelihood
            if score is not None:
                top = [self._one(token, value) for token, value in score.top]
                content.append({**self._one(step.token, score.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _one(self, token: int, value: float) -> dict[str, Any]:
        text, tokenizer = self._text(token), self._model.tokenizer
        whole = tokenizer is not None and str(tokenizer.decode([token])) == text  # else a part of a character
        return {"token": text, "logprob": finite_or_none(value), "bytes": list(text.encode()) if whole else None}


def context_of(model: LayerSkipModel, options: ServerOptions) -> int | None:
    """How many tokens a prompt and its answer may have together: as the server or the model says, the fewer."""
    return min(filter(None, (options.context, model.executor.max_tokens)), default=None)


def messages_as_tokens(model: LayerSkipModel, messages: Sequence[Message]) -> tuple[int, ...]:
    """Tokens of a conversation that waits for its next answer; `RefusedError` 400 where the template refuses it."""
    try:
        return tuple(chat_tokens(model.tokenizer, [message.turn() for message in messages]))
    except RequestError as error:
        raise bad_request(str(error), "messages") from error


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _encoded(body) + b"\n\n"


def _encoded(body: dict[str, Any]) -> bytes:
    return _ENCODER.encode(body).encode("utf-8", "replace")
