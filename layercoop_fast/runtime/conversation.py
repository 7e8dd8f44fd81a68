"""A conversation with a model: turns, the chat template, and which mask answers.

Every turn is put through the template anew, so the tokens before it are those of the turn before and their keys and
values are taken over, under the mask that computed them.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.masks.text import mask_of, text_of
from layercoop_fast.runtime.options import Sampling

if TYPE_CHECKING:
    from layercoop_fast.masks.halves import Halves
    from layercoop_fast.runtime.model import LayerSkipModel

# Where an answer no longer fits, it may be this short before earlier turns are forgotten.
_SHORTEST = 16


@dataclass
class Answer:
    """What the last answer took.

    Attributes:
        tokens: how many came.
        first_seconds: until the first of them.
        seconds: until the last.
        forgotten: turns that no longer fitted and were left out.
    """

    tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    forgotten: int = 0

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first; None of one token."""
        return (self.tokens - 1) / (self.seconds - self.first_seconds) if self.tokens > 1 else None


@dataclass
class Conversation:
    """A conversation.

    Attributes:
        model: answers.
        sampling, max_new_tokens, stops: as of `LayerSkipModel.stream`.
        system: said before everything, where given.
        masks: by name; "full" is there.
        name: of the mask that answers.
        draft: mask of the draft, None for none.
        turns: what was said, `{"role", "content"}`.
        answer: of the last answer.
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
        if not getattr(self.model.tokenizer, "chat_template", None):
            raise RequestError(
                "the model's tokenizer has no chat template: it continues texts (`generate`) and does not talk"
            )

    def use(self, text: str) -> Halves:
        """Let another mask answer from now on: its name, `NAME=BLOCKS` to name one, or what is to be left out.

        Raises `RequestError` for what is none of these.
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
        """Say something and hand out the answer as it comes. What came before this is closed stays in the talk."""
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
        """Forget what was said."""
        self.turns.clear()

    def tokens(self, turns: list[dict[str, str]]) -> list[int]:
        """Tokens of a conversation that waits for its next answer."""
        from jinja2.exceptions import TemplateError

        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            text = tokenizer.apply_chat_template([*system, *turns], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise RequestError(f"the chat template does not take this conversation: {reason(error)}") from error
        return list(tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"])

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
        """Tokens of the conversation and how many may follow; the oldest turns go where there is no room."""
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
                    f"that is too long: with it there are {len(ids)} tokens, and the model has positions for {most}"
                )
            first += 2
