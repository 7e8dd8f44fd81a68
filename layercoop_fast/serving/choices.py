"""Answers of completions and chats, whole or as streams of server-sent events: from tokens to choices.

An answer has `n` choices for each prompt, in order. A stream carries the same pieces one by one (`_piece` makes each of
a token) and ends with `[DONE]`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.requests import Step
from layercoop_fast.runtime.stops import NO_CHARACTER
from layercoop_fast.search.base import finite_or_none
from layercoop_fast.serving.answers import Answer, encoded, event, turns_as_tokens
from layercoop_fast.serving.engine import Ticket
from layercoop_fast.serving.failures import RefusedError, bad_request
from layercoop_fast.serving.protocol import AskedOften, ChatRequest, CompletionRequest

# OpenAI's own default of completions.
_COMPLETION_TOKENS = 16
_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


class ChoiceAnswer(Answer):
    """See the module; arguments and errors as of `Answer`."""

    asked: AskedOften
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._texts: dict[int, str] = {}
        self._offsets: dict[int, int] = {}

    def _each(self) -> int:
        return self.asked.n or 1

    @abstractmethod
    def _choice(self, index: int, text: str, reason: str | None, steps: Sequence[Step]) -> dict[str, Any]:
        """A choice of a whole answer."""

    @abstractmethod
    def _piece(
        self, index: int, text: str, reason: str | None, steps: Sequence[Step], *, first: bool
    ) -> dict[str, Any]:
        """A choice of a chunk of a stream."""

    def _text(self, token: int) -> str:
        """A token by itself: its text, or where it is no whole character its name in the vocabulary."""
        if token not in self._texts:
            tokenizer = self._model.tokenizer
            text = str(token) if tokenizer is None else str(tokenizer.decode([token]))
            if NO_CHARACTER in text and tokenizer is not None:
                text = str(tokenizer.convert_ids_to_tokens(token))
            self._texts[token] = text
        return self._texts[token]

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
        before = b"data: " + encoded({**head, "choices": []})[:-2]
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
                    events += before, encoded(piece), after
                if events:
                    yield b"".join(events)
            if with_usage:
                yield event({**head, "choices": [], "usage": self.usage(count, ticket)})
            yield b"data: [DONE]\n\n"
        except RefusedError as error:
            if not begun:
                raise  # nothing was sent yet: a status says it
            yield event(error.body())
        finally:
            ticket.cancel()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.mask.model}


class Completion(ChoiceAnswer):
    """`POST /v1/completions`."""

    asked: CompletionRequest
    object = chunk_object = "text_completion"
    id_prefix, prompt_field = "cmpl-", "prompt"

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


class Chat(ChoiceAnswer):
    """`POST /v1/chat/completions`."""

    asked: ChatRequest
    object, chunk_object = "chat.completion", "chat.completion.chunk"
    id_prefix, prompt_field = "chatcmpl-", "messages"

    def _prompts(self) -> list[tuple[int, ...]]:
        return [turns_as_tokens(self._model, [message.turn() for message in self.asked.messages])]

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
