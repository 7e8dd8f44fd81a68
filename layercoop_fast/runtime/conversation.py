"""A conversation with a model: its turns, the chat template, and the mask that answers.

The template is applied to all turns each time. Earlier turns give the same tokens again, so that their keys and values
are reused, under the mask that computed them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.masks.text import mask_of, text_of
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.texts.tokens import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.masks.halves import Halves
    from layercoop_fast.runtime.model import LayerSkipModel

# Earlier turns are left out when fewer tokens than these are left for an answer.
_SHORTEST = 16


@dataclass
class Answer:
    """Figures of the last answer.

    Attributes:
        tokens: number of tokens.
        first_seconds: seconds until the first token.
        seconds: seconds until the last token.
        forgotten: number of turns that were left out because they did not fit.
    """

    tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    forgotten: int = 0

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first token; None with fewer than two tokens."""
        return (self.tokens - 1) / (self.seconds - self.first_seconds) if self.tokens > 1 else None


@dataclass
class Conversation:
    """A conversation.

    Attributes:
        model: that answers.
        sampling, max_new_tokens, stops: as of `LayerSkipModel.stream`.
        system: the system message, where given.
        masks: by name, uint8 [L]; "full" always exists.
        name: of the mask that answers.
        draft: mask of the draft, uint8 [L]; None for none.
        turns: messages so far, `{"role", "content"}`.
        answer: figures of the last answer.
    """

    model: LayerSkipModel
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 512
    stops: tuple[str, ...] = ()
    system: str | None = None
    masks: dict[str, Halves] = field(default_factory=dict)
    name: str = "full"
    draft: Halves | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    answer: Answer = field(default_factory=Answer)

    def __post_init__(self) -> None:
        self.masks.setdefault("full", self.model.mask())
        _with_template(self.model.tokenizer)

    def use(self, text: str) -> Halves:
        """Choose the mask of later answers; return it, uint8 [L].

        `text` is the name of a mask, `NAME=BLOCKS` to define one, or the blocks to leave out. Raises `RequestError` for
        any other text.
        """
        name, named, blocks = text.strip().partition("=")
        if not named and name in self.masks:
            self.name = name
            return self.masks[name]
        if not named and name.isidentifier():
            known = ", ".join(self.masks)
            raise RequestError(
                f"no mask is called {name}: there are {known}; /mask {name}=13-18 makes one of that name"
            )
        mask = self.model.mask(mask_of(blocks if named else name, self.model.n_layers, "/mask"))
        self.name = name if named else text_of(mask)
        self.masks[self.name] = mask
        return mask

    def say(self, text: str) -> Generator[str, None, None]:
        """Add a message and yield the answer as it is generated; a part before the iterator is closed is kept."""
        self.turns.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            ids, room = self._prompt()
            yield from self._answered(ids, room, said)
        finally:
            if said:
                self.turns.append({"role": "assistant", "content": "".join(said).strip()})
            else:
                self.turns.pop()

    def reset(self) -> None:
        """Remove all turns."""
        self.turns.clear()

    def tokens(self, turns: list[dict[str, str]]) -> list[int]:
        """The tokens of a conversation, up to the beginning of the next answer."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return chat_tokens(self.model.tokenizer, [*system, *turns])

    def _answered(self, ids: list[int], room: int, said: list[str]) -> Generator[str, None, None]:
        started = time.perf_counter()
        answer = self.answer
        steps = self.model.stream(
            ids,
            self.masks[self.name],
            max_new_tokens=room,
            sampling=self.sampling,
            stop=self.stops,
            draft=self.draft,
        )
        try:
            for step in steps:
                answer.seconds = time.perf_counter() - started
                answer.first_seconds = answer.first_seconds or answer.seconds
                answer.tokens += 1
                if step.text:
                    said.append(step.text)
                    yield step.text
        finally:
            steps.close()

    def _prompt(self) -> tuple[list[int], int]:
        """The tokens of the conversation and how many may follow; the oldest turns are left out if there is no room."""
        self.answer = Answer()
        most = self.model.executor.max_tokens
        first = 0
        while True:
            ids = self.tokens(self.turns[first:])
            room = self.max_new_tokens if most is None else min(self.max_new_tokens, most - len(ids))
            if room >= min(_SHORTEST, self.max_new_tokens):
                self.turns = self.turns[first:]
                self.answer.forgotten = first
                return ids, room
            if len(self.turns) - first < 3:
                raise RequestError(
                    f"the message is too long: with it there are {len(ids)} tokens, and the model has positions for "
                    f"{most}"
                )
            first += 2


def chat_tokens(tokenizer: PreTrainedTokenizerBase | None, turns: Sequence[dict[str, str]]) -> list[int]:
    """The tokens of messages, `{"role", "content"}` each, up to the beginning of the next answer.

    Raises `RequestError` without a chat template, and for messages that the template rejects.
    """
    from jinja2.exceptions import TemplateError

    tokenizer = _with_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise RequestError(f"the chat template rejects this conversation: {reason(error)}") from error
    return tokens_of(str(text), tokenizer)


def _with_template(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise RequestError(
            "the model's tokenizer has no chat template: the model continues texts (`generate`), but cannot chat"
        )
    return tokenizer
