"""What is asked of a model, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.sampling import Sampler
from layercoop_fast.runtime.sequences import Sequence
from layercoop_fast.runtime.stops import TextStream, check_stops

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Finish = Literal["length", "eos", "stop"]
"""Why an answer ended: as long as it may be, a token that ends texts, or a stop string."""


@dataclass(frozen=True, eq=False)
class Request:
    """One text to go on with.

    Attributes:
        prompt: its tokens, at least one.
        mask: uint8 [L], the halves of blocks to run.
        max_new_tokens: how long the answer may be.
        sampling: how tokens are chosen.
        stops: strings that end the answer.
        ignore_eos: go on behind a token that ends texts.
        index: number among the requests of one call, so that equal ones draw differently.
        draft: uint8 [L] within `mask`, what drafts run (`speculative.py`); None for none.
        call: the same object for requests that were asked together: where room is short, every call gets some.
    """

    prompt: tuple[int, ...]
    mask: Halves
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    index: int = 0
    draft: Halves | None = None
    call: object = field(default_factory=object)


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        tokens: those of the answer, the one that ended it included.
        text: the answer up to a stop string, without special tokens; None where the model has no tokenizer.
        finish: why it ended.
        prompt_tokens: length of the prompt.
        reused_tokens: of these, how many were not computed because their keys and values were there.
        first_token_seconds, seconds: from the start of its computation to the first token, and to the last.
    """

    tokens: list[int]
    text: str | None
    finish: Finish
    prompt_tokens: int
    reused_tokens: int
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True)
class Step:
    """One token of an answer as it comes: the text that it makes certain may be empty, or more than its own."""

    token: int
    text: str
    finish: Finish | None = None


@dataclass(eq=False)
class Running:
    """A request under way.

    Attributes:
        known: prompt and answer so far; what `sequence` has not computed of it is to be computed.
        steps: what has come so far.
        finish: None while it runs, and where it failed.
        error: what ended it otherwise.
        waiter: the thread that waits for it just now.

    One thread writes these at a time; any may read `steps`, and first whether it has `ended`: then all steps are there.
    """

    request: Request
    sequence: Sequence
    eos: frozenset[int]
    tokenizer: PreTrainedTokenizerBase | None
    known: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish: Finish | None = None
    error: Exception | None = None
    waiter: int | None = None
    reused_tokens: int = 0
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        request = self.request
        self.known = list(request.prompt)
        self.sampler = Sampler(request.sampling, request.prompt, index=request.index)
        self.stream = None if self.tokenizer is None else TextStream(self.tokenizer, request.prompt, request.stops)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None or self.error is not None

    @property
    def room(self) -> int:
        """How many tokens may still come."""
        return self.request.max_new_tokens - (len(self.known) - len(self.request.prompt))

    @property
    def pending(self) -> int:
        """How many known tokens are still to be computed: one while the answer grows, more while a prompt is read."""
        return len(self.known) - self.sequence.length

    def accept(self, token: int) -> bool:
        """Note the next token of the answer, chosen and noted by the sampler; returns whether the answer ends here."""
        now = time.perf_counter()
        self.first = self.first or now
        self.known.append(token)
        text = "" if self.stream is None else self.stream.push(token)
        produced = len(self.known) - len(self.request.prompt)
        finish: Finish | None = None
        if self.stream is not None and self.stream.stopped is not None:
            finish = "stop"
        elif token in self.eos and not self.request.ignore_eos:
            finish = "eos"
        elif produced == self.request.max_new_tokens:
            finish = "length"
        if finish is not None:
            self.last = now
            text += "" if self.stream is None else self.stream.close()
        self.steps.append(Step(token, text, finish))
        self.finish = finish
        return finish is not None

    def result(self) -> Generation:
        """The answer, once it has ended."""
        assert self.finish is not None
        return Generation(
            tokens=[step.token for step in self.steps],
            text=None if self.stream is None else "".join(step.text for step in self.steps),
            finish=self.finish,
            prompt_tokens=len(self.request.prompt),
            reused_tokens=self.reused_tokens,
            first_token_seconds=self.first - self.started,
            seconds=self.last - self.started,
        )


def read_stops(stop: str | Several[str], tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Stop strings as a tuple; raises `RequestError` for what cannot be one, and without a tokenizer."""
    found = check_stops(stop)
    if found and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this checkpoint has none")
    return found
