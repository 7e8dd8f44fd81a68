"""The requests of OpenAI's interface, as far as this server answers them.

A field that is not here is refused by name where it would change the answer (`REFUSED`), and ignored where it would not
(`user`, `metadata`, `store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from layercoop_fast.serving.failures import bad_request, not_offered
from layercoop_fast.serving.options import MOST_ANSWERS

MOST_MESSAGES, MOST_PARTS, _MOST_MASK, _MOST_BITS = 4096, 64, 20_000, 2048


def _unicode(text: str) -> str:
    """A text, which must have a UTF-8 form: halves of surrogate pairs have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[StrictStr, AfterValidator(_unicode)]
MaskText = Annotated[StrictStr, Field(max_length=_MOST_MASK)]
MaskBits = Annotated[list[StrictBool], Field(max_length=_MOST_BITS)]

# Fields that change what is answered, with the values at which they change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}
IGNORED = frozenset(("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user", "verbosity"))


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool = False


class Asked(BaseModel):
    """What all requests for an answer have in common.

    Besides OpenAI's fields: `layer_mask` (a mask that has no name), `top_k`, `min_p`, `repetition_penalty` and
    `ignore_eos`, as `runtime.sampling.Sampling` and `LayerSkipModel.generate` mean them, and `draft` (False: write
    this answer without the server's draft).
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = REFUSED
    ignored: ClassVar[frozenset[str]] = IGNORED

    model: StrictStr = Field(min_length=1, max_length=160)
    layer_mask: MaskText | MaskBits | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stream: StrictBool | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    ignore_eos: StrictBool | None = None
    draft: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        kept = {}
        for name, value in given.items():
            if name in cls.ignored:
                continue
            if name in cls.refused:
                harmless = cls.refused[name]
                if not any(
                    (type(value) is type(each) and value == each) or _same_number(value, each) for each in harmless
                ):
                    raise not_offered(name)
                continue
            kept[name] = value
        return kept


def _same_number(value: object, other: object) -> bool:
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (value, other))
    return numbers and value == other


class AskedOften(Asked):
    """What completions and chats have in common: they may be answered several times."""

    n: Annotated[StrictInt, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stream_options: StreamOptions | None = None


_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT = {
    "anyOf": [
        {"type": "string"},
        _TOKENS,
        {"type": "array", "items": {"anyOf": [{"type": "string"}, _TOKENS]}, "minItems": 1},
    ]
}


class CompletionRequest(AskedOften):
    """`POST /v1/completions`."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    max_tokens: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    @field_validator("prompt")
    @classmethod
    def _a_prompt_or_several(cls, given: Any) -> Any:
        # By hand: as a union of types every item of a long list would be an error of its own, several times.
        many = isinstance(given, list) and len(given) > 0 and not _is_tokens(given)
        for prompt in given if many else [given]:
            if isinstance(prompt, str):
                _unicode(prompt)
            elif not _is_tokens(prompt):
                raise ValueError(
                    "a prompt is a text or a list of at least 1 token, and prompt is one or a list of them"
                )
        return given

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or more."""
        return [self.prompt] if isinstance(self.prompt, str) or _is_tokens(self.prompt) else self.prompt


def _is_tokens(given: object) -> bool:
    return isinstance(given, list) and len(given) > 0 and all(type(each) is int for each in given)


Turn: TypeAlias = dict[str, str]
"""Role and content of a turn, as chat templates take them."""


class Part(BaseModel):
    """A part of a message's content; text is all that there is here."""

    text: Text


class TextPart(Part):
    """A part of a chat's message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=MOST_PARTS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_tools(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name in ("tool_calls", "function_call", "audio"):
                if given.get(name):
                    raise not_offered(name)
        return given

    def turn(self) -> Turn:
        """As chat templates take it."""
        return turn_of(self.role, self.content or "")


def turn_of(role: str, content: str | Sequence[Part]) -> Turn:
    """A turn of a conversation as chat templates take it, of a text or of parts with texts."""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if role == "developer" else role, "content": text}


class ChatRequest(AskedOften):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _top_logprobs_with_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        return self


class TokenizeRequest(BaseModel):
    """`POST /tokenize`: a text, or the messages of a conversation that waits for its answer."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: StrictStr | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], FailFast(), Field(max_length=MOST_MESSAGES)] = Field(default=[])

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give prompt or messages, one of the two")
        return self


class MaskRequest(BaseModel):
    """`POST /v1/masks`: a name for a mask."""

    model_config = ConfigDict(extra="forbid")
    name: StrictStr = Field(min_length=1, max_length=64)
    layer_mask: MaskText | MaskBits
