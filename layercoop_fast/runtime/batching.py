"""Many requests at once: what is computed in which call.

A call computes one token of every answer that grows, and beside them a part of a prompt, so that a long prompt stalls
nobody. Requests with one prompt read it together: their calls hold the same tokens, so blocks that their masks agree on
run once (`sharing.py`). Where keys and values do not fit, the youngest request gives its own back and reads on later;
what it says does not change. Where all requests at hand grow and have a draft (`speculative.py`), a step may be a round
of drafts and their verification.

Any number of threads may ask: one of those that wait computes for all (`turns.py`), so what they ask runs in the same
calls. Where not all requests fit, those that were asked together wait for each other and not for those of other calls.
An error ends the request that it belongs to.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Several
from functools import partial
from typing import TYPE_CHECKING

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.pages import PAGE, PoolFullError
from layercoop_fast.runtime.prefix_tree import PrefixTree
from layercoop_fast.runtime.requests import Request, Running
from layercoop_fast.runtime.sequences import pages_for
from layercoop_fast.runtime.speculative import Speculator, Speculators, Writer
from layercoop_fast.runtime.turns import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFILL_TOKENS = 256
"""Rows of prompts that a call computes beside the answers."""

# As many likely words are found while logits are computed; for more, all logits are handed out.
_MOST_LIKELY = 512

_SMALLEST_PART = 32
# Many prompts read together still go by parts of so many tokens, or they would never end.


class Batcher:
    """Runs requests, new ones at any time, for any number of threads.

    Args:
        executor: what computes.
        eos: tokens that end a text.
        tokenizer: for text and stop strings, where there is one.
        prefill_tokens: rows of prompts a call.
        most: requests that run at a time; the others wait.
    """

    def __init__(
        self,
        executor: Executor,
        eos: frozenset[int] = frozenset(),
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        prefill_tokens: int = PREFILL_TOKENS,
        most: int = 64,
    ) -> None:
        self.executor = executor
        self.eos = eos
        self.tokenizer = tokenizer
        self.prefill_tokens = prefill_tokens
        self.most = most
        # A recurrent state cannot be taken over in the middle of a text.
        self.tree = PrefixTree(executor.pool) if executor.rewindable else None
        self.running: list[Running] = []
        self.waiting: deque[Running] = deque()
        self.speculators = Speculators(executor)
        self._turns = Turns(weakref.WeakMethod(self._forked))

    def prepare(self, request: Request) -> Running:
        """Check a request; it is not under way before `start`.

        Raises `RequestError` for an empty prompt, tokens that are no words, more tokens than the model has positions
        or the budget has room for.
        """
        executor = self.executor
        if not request.prompt:
            raise RequestError("the prompt is empty: at least one token is needed")
        if min(request.prompt) < 0 or max(request.prompt) >= executor.vocab_size:
            raise RequestError(f"tokens are numbers from 0 to {executor.vocab_size - 1}")
        if request.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be 1 or more, not {request.max_new_tokens}")
        total = len(request.prompt) + request.max_new_tokens
        if executor.max_tokens is not None and total > executor.max_tokens:
            raise RequestError(
                f"a prompt of {len(request.prompt)} tokens and {request.max_new_tokens} new ones are {total}, and the "
                f"model has positions for {executor.max_tokens}"
            )
        sequence = executor.sequence(request.mask)
        running = Running(request, sequence, self.eos, self.tokenizer)
        if (needed := self._bytes(running, total)) > executor.pool.budget:
            raise RequestError(
                f"keys and values of {total} tokens take {needed} bytes, and the budget is {executor.pool.budget}: "
                "give more memory (kv_memory), or ask for fewer tokens"
            )
        return running

    def start(self, runnings: Several[Running]) -> None:
        """Take prepared requests in; they begin with one of the next steps."""
        self.waiting.extend(runnings)

    def add(self, request: Request) -> Running:
        """`prepare` and `start`."""
        running = self.prepare(request)
        self.start([running])
        return running

    def cancel(self, *runnings: Running) -> None:
        """Take requests out, ended or not; where another thread computes, once its step is done. Never waits."""

        def drop() -> None:
            for one in runnings:
                self._drop(one)

        self._turns.post(drop)

    def step(self) -> list[Running]:
        """Compute one call; returns the requests that got a token by it, or ended (`finish`, `error`)."""
        return self._turns.call(self._step)

    def run(self) -> None:
        """Compute until every request has ended."""
        while self.running or self.waiting:
            self.step()

    def wait(self, runnings: Several[Running], tokens: float = math.inf) -> None:
        """Compute, or let other threads compute, until each of these has more than `tokens` tokens or has ended.

        Raises the first error of theirs, as soon as there is one.
        """

        def done() -> bool:
            return all(one.ended or len(one.steps) > tokens for one in runnings) or any(one.error for one in runnings)

        for one in runnings:
            one.waiter = threading.get_ident()
        try:
            self._turns.until(done, self._step)
        finally:
            for one in runnings:
                one.waiter = None
        for one in runnings:
            if one.error is not None and len(one.steps) <= tokens:
                raise one.error

    def forget(self) -> None:
        """Let go of the keys and values that are kept for later requests."""
        if self.tree is not None:
            self._turns.call(self.tree.clear)

    def drafting(self) -> dict[str, int]:
        """What drafts came to so far: `Speculators.counts`."""
        return self._turns.call(self.speculators.counts)

    def _forked(self) -> None:
        """In a forked child: the threads that waited are not there."""
        under_way = [*self.running, *self.waiting]
        self.cancel(*(one for one in under_way if one.waiter not in (None, threading.get_ident())))

    # What follows runs in turns: one thread at a time.

    def _step(self) -> list[Running]:
        while True:
            self._admit()
            if not self.running:
                return []
            try:
                if (speculator := self._speculator()) is not None:
                    return self._advance(speculator)
                chosen = self._choose()
                chunks = [Chunk(one.sequence, part, int(len(part) == one.pending)) for one, part in chosen]
                return self._accept([one for one, _ in chosen], chunks)
            except PoolFullError as error:
                if len(self.running) == 1:
                    (alone,) = self.running
                    self._fail(alone, error)
                    return [alone]
                self._put_back(self.running[-1])

    def _drop(self, one: Running) -> None:
        self._let_go(one)
        if not one.ended:
            one.error = RunError("the request was cancelled")

    def _fail(self, one: Running, error: Exception) -> None:
        """End a request, and no other, by an error."""
        self._let_go(one)
        one.error = error

    def _let_go(self, one: Running) -> None:
        if one in self.running:
            self.running.remove(one)
        elif one in self.waiting:
            self.waiting.remove(one)
        one.sequence.release()

    def _put_back(self, one: Running) -> None:
        """Let a request give its keys and values back and read on later."""
        self.running.remove(one)
        one.sequence.release()
        self.waiting.appendleft(one)

    def _admit(self) -> None:
        room = self.executor.pool.budget - sum(map(self._room, self.running))
        while self.waiting:
            at_work = Counter(one.request.call for one in self.running)
            # The first that came, of the calls with the fewest at work.
            one = min(list(self.waiting), key=lambda each: at_work[each.request.call])
            if self.running and (len(self.running) >= self.most or room < self._room(one)):
                # No call waits for all that another one asked: the youngest of the largest makes room.
                largest, count = at_work.most_common(1)[0]
                if at_work[one.request.call] or count < 2:
                    return
                youngest = [each for each in self.running if each.request.call is largest][-1]
                room += self._room(youngest)
                if self.tree is not None:
                    self.tree.insert(youngest.sequence)
                self._put_back(youngest)
                continue
            self.waiting.remove(one)
            room -= self._room(one)
            one.started = one.started or time.perf_counter()
            if self.tree is not None:
                one.reused_tokens = max(one.reused_tokens, self.tree.match(one.sequence, one.known))
            self.running.append(one)

    def _room(self, one: Running) -> int:
        """Bytes that a request needs to begin, or to go on for a while."""
        return self._bytes(one, len(one.known) + PAGE)

    def _choose(self) -> list[tuple[Running, list[int]]]:
        """Which tokens of which requests the next call computes."""
        chosen = [(one, one.known[-1:]) for one in self.running if one.pending == 1]
        reading = [one for one in self.running if one.pending > 1]
        room = self.prefill_tokens
        while reading and room > 0:
            first = reading[0]
            length = first.sequence.length
            alike = [
                one
                for one in reading
                if one.sequence.length == length and one.pending == first.pending and one.known == first.known
            ]
            size = first.pending
            if self.executor.rewindable:  # a recurrent state reads a text in one piece
                size = min(size, max(_SMALLEST_PART, room // len(alike)))
            chosen += [(one, one.known[length : length + size]) for one in alike]
            reading = [one for one in reading if one not in alike]
            room -= size * len(alike)
        return chosen

    def _accept(self, runnings: list[Running], chunks: list[Chunk]) -> list[Running]:
        answering = [one for one, chunk in zip(runnings, chunks, strict=True) if chunk.wanted]
        try:
            picks = self._computed(answering, chunks)
        except PoolFullError:
            raise
        except Exception as error:
            return self._one_by_one(runnings, error)
        for one, pick in zip(answering, picks, strict=True):
            try:
                word = pick()
                if self.tree is not None and not one.steps:
                    self.tree.insert(one.sequence)  # the prompt, for those that come while this one still answers
                if one.accept(word):
                    self._end(one)
            except Exception as error:
                self._fail(one, error)
        return answering

    def _computed(self, answering: list[Running], chunks: list[Chunk]) -> Several[Callable[[], int]]:
        """Compute the chunks; for each that answers, what chooses its next token and notes it."""
        if all(one.request.sampling.plain for one in answering):
            words = self.executor.best(chunks).tolist()
            return [partial(one.sampler.noted, word) for one, word in zip(answering, words, strict=True)]
        if reach := self._reach(answering):
            likeliest, tokens = (each.cpu() for each in self.executor.top(chunks, reach))
            rows = zip(answering, likeliest, tokens, strict=True)
            return [partial(one.sampler.next_among, *row) for one, *row in rows]
        logits = self.executor.run(chunks)
        return [partial(one.sampler.next, row) for one, row in zip(answering, logits, strict=True)]

    def _one_by_one(self, runnings: list[Running], error: Exception) -> list[Running]:
        """A call failed: each of its requests by itself and from its first token, so that it ends the one at fault."""
        if len(runnings) == 1:
            self._fail(runnings[0], error)
            return runnings
        for one in runnings:
            one.sequence.release()
        touched: list[Running] = []
        for one in runnings:
            try:
                touched += self._accept([one], [Chunk(one.sequence, list(one.known))])
            except PoolFullError:
                self._put_back(one)
        return touched

    def _reach(self, runnings: list[Running]) -> int:
        """How many of the likeliest words decide for all of them; 0 where so many do not."""
        reaches = [one.request.sampling.reach for one in runnings]
        return max(reaches) if min(reaches) > 0 and max(reaches) <= min(_MOST_LIKELY, self.executor.vocab_size) else 0

    def _end(self, one: Running) -> None:
        """Keep what an ended request computed for later ones."""
        self.running.remove(one)
        if self.tree is not None:
            self.tree.insert(one.sequence)
        one.sequence.release()

    def _speculator(self) -> Speculator | None:
        """What writes with drafts, where that can be done: all at hand grow, under one mask and one draft."""
        first = self.running[0]
        draft, mask = first.request.draft, first.request.mask
        if draft is None or self.waiting or any(one.pending != 1 for one in self.running):
            return None
        for one in self.running[1:]:
            other = one.request.draft
            if other is None or (one.request.mask != mask).any() or (other != draft).any():
                return None
        return self.speculators.get(mask, draft, len(self.running))

    def _advance(self, speculator: Speculator) -> list[Running]:
        """A step or a round of drafts for all at hand."""
        runnings = list(self.running)
        writers = [Writer(one.sequence, one.known[-1], one.sampler, one.room) for one in runnings]
        try:
            found = speculator.advance(writers)
        except PoolFullError:
            raise
        except Exception as error:
            return self._one_by_one(runnings, error)
        for one, words in zip(runnings, found, strict=True):
            try:
                if any(one.accept(word) for word in words):  # up to the one that ends it
                    one.sequence.truncate(min(one.sequence.length, len(one.known) - 1))
                    self._end(one)
            except Exception as error:
                self._fail(one, error)
        return runnings

    def _bytes(self, one: Running, tokens: int) -> int:
        """What keys and values of so many tokens take, none of them shared."""
        pool = self.executor.pool
        return pages_for(tokens) * int(pool.page_bytes[one.sequence.layers].sum())
