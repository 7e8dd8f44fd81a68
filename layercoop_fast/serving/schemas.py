"""What the server's answers look like, for `/openapi.json`.

Long answers are not built from these: a test compares the two (`tests/slow/test_serving_fuzz.py`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Failure(_Exact):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class FailureBody(_Exact):
    """OpenAI's body of a request that is not answered."""

    error: Failure


class CachedTokens(_Exact):
    """Tokens of a prompt that were computed already."""

    cached_tokens: int


class Usage(_Exact):
    """What an answer took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(_Exact):
    """Log-probabilities of a completion, in lists that go by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None]]
    text_offset: list[int]


class CompletionChoice(_Exact):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class _Chosen(_Exact):
    id: str
    created: int
    model: str
    usage: Usage


class CompletionBody(_Chosen):
    """The answer of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ChatMessage(_Exact):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class TokenLogprob(_Exact):
    """A token and its log-probability; no bytes where it is a part of a character."""

    token: str
    logprob: float | None
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """A token of the answer, with those that were most likely in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Exact):
    """Log-probabilities of a chat."""

    content: list[ChosenLogprob]
    refusal: None


class ChatChoice(_Exact):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatBody(_Chosen):
    """The answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class OutputText(_Exact):
    """A text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(_Exact):
    """The message of an answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class ReasoningTokens(_Exact):
    """There is no reasoning."""

    reasoning_tokens: int


class ResponseUsage(_Exact):
    """What a response took, in tokens."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseBody(_Exact):
    """The answer of `/v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: Literal[False]
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none"]
    tools: list[Any]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage


class ModelBody(_Exact):
    """A mask as a model, with what it keeps and what that takes."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    removed: str
    layers_kept: int
    layers: int
    parameters: int
    bytes: int


class ModelsBody(_Exact):
    """The base model and every mask that has a name."""

    object: Literal["list"]
    data: list[ModelBody]


class AddedBody(ModelBody):
    """A mask that was given a name, and the names that made room for it."""

    left: list[str]


class RemovedBody(_Exact):
    """A mask whose name was taken away."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class TokensBody(_Exact):
    """A text as tokens."""

    count: int
    max_model_len: int | None
    tokens: list[int]


class HealthBody(_Exact):
    """How the engine is."""

    status: Literal["ok", "failed"]


def described(model: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """The status 200 of a route for `/openapi.json`."""
    found: dict[str, Any] = {"model": model}
    if streams:
        found["description"] = "The answer; with `stream` as server-sent events."
        found["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: found}


FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": FailureBody, "description": "The request was wrong, or too many wait."},
    "5XX": {"model": FailureBody, "description": "The server failed, or ends."},
}
"""What every route may answer besides."""
