"""`POST /v1/responses`: OpenAI's newer form of a conversation, without its state, tools and reasoning."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from layercoop_fast.runtime.requests import Step
from layercoop_fast.serving.answers import Answer, event, turns_as_tokens
from layercoop_fast.serving.engine import Ticket
from layercoop_fast.serving.failures import RefusedError
from layercoop_fast.serving.protocol import MOST_MESSAGES, MOST_PARTS, Asked, Part, Text, Turn, turn_of


class InputPart(Part):
    """A part of a message's content: text of the user, or of an earlier answer."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["input_text", "output_text"]


class InputMessage(BaseModel):
    """A turn of a conversation; an item of an earlier answer's `output` is one."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[InputPart], Field(max_length=MOST_PARTS)]


class ResponseRequest(Asked):
    """The body of a request."""

    refused: ClassVar = {
        "background": (None, False),
        "context_management": (None,),
        "conversation": (None,),
        "include": (None, []),
        "max_tool_calls": (None,),
        "parallel_tool_calls": (None, True, False),
        "previous_response_id": (None,),
        "prompt": (None,),
        "reasoning": (None, {}),
        "store": (None, False),
        "stream_options": (None, {}, {"include_obfuscation": False}),
        "text": (None, {}, {"format": {"type": "text"}}),
        "tool_choice": (None, "none", "auto"),
        "tools": (None, []),
        "top_logprobs": (None, 0),
        "truncation": (None, "disabled"),
    }
    ignored: ClassVar = frozenset(
        ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user")
    )

    input: Text | Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = None

    def turns(self) -> list[Turn]:
        """The conversation, the instructions first."""
        before = [] if self.instructions is None else [turn_of("system", self.instructions)]
        if isinstance(self.input, str):
            return [*before, turn_of("user", self.input)]
        return [*before, *(turn_of(each.role, each.content) for each in self.input)]


class ResponseAnswer(Answer):
    """The answer: one message of one text. Arguments and errors as of `Answer`."""

    asked: ResponseRequest
    id_prefix, prompt_field = "resp_", "input"

    def _prompts(self) -> list[tuple[int, ...]]:
        return [turns_as_tokens(self._model, self.asked.turns(), "input")]

    def _most(self) -> int | None:
        return self.asked.max_output_tokens

    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return self._ended([step async for _, step in ticket.steps()], ticket)

    async def stream(self, ticket: Ticket) -> AsyncIterator[bytes]:
        """The typed events of a streamed answer; closing this ends what is still computed."""
        steps: list[Step] = []
        sent = 0

        def typed(kind: str, **what: Any) -> bytes:
            nonlocal sent
            sent += 1
            return f"event: {kind}\n".encode() + event({"type": kind, "sequence_number": sent - 1, **what})

        part = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        try:
            async for _, step in ticket.steps():
                if not steps:
                    begun = self._body("in_progress", [])
                    yield typed("response.created", response=begun)
                    yield typed("response.in_progress", response=begun)
                    item = {**self._message("in_progress", ""), "content": []}
                    yield typed("response.output_item.added", output_index=0, item=item)
                    yield typed("response.content_part.added", **part, part=_text(""))
                steps.append(step)
                if step.text:
                    yield typed("response.output_text.delta", **part, delta=step.text, logprobs=[])
            body = self._ended(steps, ticket)
            (message,) = body["output"]
            (text,) = message["content"]
            yield typed("response.output_text.done", **part, text=text["text"], logprobs=[])
            yield typed("response.content_part.done", **part, part=text)
            yield typed("response.output_item.done", output_index=0, item=message)
            yield typed(f"response.{body['status']}", response=body)
        except RefusedError as error:
            if not steps:
                raise  # nothing was sent yet: a status says it
            yield typed("error", code=error.code, message=str(error), param=error.param)
        finally:
            ticket.cancel()

    def _ended(self, steps: Sequence[Step], ticket: Ticket) -> dict[str, Any]:
        status = "incomplete" if steps[-1].finish == "length" else "completed"
        usage = self.usage(len(steps), ticket)
        body = self._body(status, [self._message(status, "".join(step.text for step in steps))])
        body["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return body

    @property
    def _message_id(self) -> str:
        return f"msg_{self.id.removeprefix(self.id_prefix)}"

    def _message(self, status: str, text: str) -> dict[str, Any]:
        content = [_text(text)]
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self.asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.mask.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
