"""Requests to a model, and their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.sampling import Sampler
from layercoop_fast.runtime.sequences import TokenSequence
from layercoop_fast.runtime.stops import TextStream, check_stops

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Finish = Literal["length", "eos", "stop"]
"""Why an answer ended: the most tokens, a token that ends texts, or a stop string."""


@dataclass(frozen=True, eq=False)
class Request:
    """One text to continue.

    Attributes:
        prompt: its tokens, at least one.
        mask: uint8 [L], the halves of blocks to run.
        max_new_tokens: most tokens of the answer.
        sampling: how tokens are chosen.
        stops: strings that end the answer.
        ignore_eos: continue after a token that ends texts.
        index: number among the requests of one call, so that equal requests draw differently.
        draft: uint8 [L] within `mask`, the halves that drafts run (`speculative.py`); None for no drafts.
        call: the same object for requests that were made together: where room is short, every call gets some.
        logprobs: number of most likely tokens to report with each step; None: no log-probabilities at all.
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
    logprobs: int | None = None


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        tokens: of the answer, including the one that ended it.
        text: the answer up to a stop string, without special tokens; None where the model has no tokenizer.
        finish: why it ended.
        prompt_tokens: length of the prompt.
        reused_tokens: tokens of the prompt whose keys and values were reused.
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
class Likelihood:
    """The model's probability of a token, before temperature, cuts and penalties.

    Attributes:
        logprob: natural logarithm of the token's probability.
        top: the most likely tokens with theirs, in descending order.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Step:
    """One token of an answer; `text` is what it makes certain: it may be empty, or more than the token's own."""

    token: int
    text: str
    finish: Finish | None = None
    likelihood: Likelihood | None = None


@dataclass(eq=False)
class Running:
    """A request that was prepared, waits or runs.

    Attributes:
        request: as made.
        sequence: of its computed tokens.
        eos: tokens that end a text.
        tokenizer: of the model, or None.
        known: prompt and answer so far; `sequence` holds the computed part.
        steps: tokens of the answer so far.
        finish: None while it runs, and where it failed.
        error: that ended it, or None.
        waiter: the thread that waits for it now, or None.
        reused_tokens: tokens of the prompt whose keys and values were reused.
        started, first, last: times on `time.perf_counter`, 0 before.
        logits: float32 [V] of the next token, where log-probabilities were requested.

    Only one thread writes these at a time. Any thread may read `ended` and then `steps`: once it has ended, all steps
    are there.
    """

    request: Request
    sequence: TokenSequence
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
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        request = self.request
        self.known = list(request.prompt)
        self.sampler = Sampler(request.sampling, request.prompt, index=request.index)
        self.stream = None if self.tokenizer is None else TextStream(self.tokenizer, request.prompt, request.stops)

    @property
    def ended(self) -> bool:
        """Whether it has finished or failed."""
        return self.finish is not None or self.error is not None

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self.request.max_new_tokens - (len(self.known) - len(self.request.prompt))

    @property
    def pending(self) -> int:
        """Number of known tokens that are not computed yet: one while generating, more while a prompt is read."""
        return len(self.known) - self.sequence.length

    def accept(self, token: int) -> bool:
        """Add the next token of the answer, which the sampler has recorded; return whether the answer ends."""
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
        self.steps.append(Step(token, text, finish, self._likelihood(token)))
        self.finish = finish
        return finish is not None

    def _likelihood(self, token: int) -> Likelihood | None:
        count, logits = self.request.logprobs, self.logits
        if count is None or logits is None:
            return None
        self.logits = None
        logprobs = logits.float().log_softmax(dim=-1)
        values, tokens = logprobs.topk(min(count, len(logprobs)))
        return Likelihood(float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))

    def result(self) -> Generation:
        """The answer of a finished request."""
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


def read_stops(stop: str | Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Stop strings as a tuple; raises `RequestError` for invalid ones, and without a tokenizer."""
    found = check_stops(stop)
    if found and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this checkpoint has none")
    return found
