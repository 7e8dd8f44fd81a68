"""Continuous batching: which tokens of which requests are computed in one step.

A step computes one token of every request that generates, and a part of the prompts of others, so that a long prompt
does not delay the answers. Requests with the same prompt read it together: their rows hold the same tokens, so blocks
that their masks agree on run once (`sharing.py`). Where keys and values do not fit, the youngest request gives up its
own and reads its tokens again later; its answer does not change. Where all running requests generate and have a draft
(`speculative.py`), a step may be a round of drafts and their verification.

Any number of threads may make requests: one of those that wait computes for all of them (`turns.py`), in the same
steps. Where not all requests fit, every call (the requests that were made together) gets some of its requests running:
no call has to wait for all requests of another one. An error ends only the request that it belongs to.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.masks.halves import Halves
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
"""Default number of prompt tokens that a step computes in addition to the answers."""

# Up to this many most likely tokens are selected by the executor; for more, it returns all logits.
_MOST_LIKELY = 512
# Prompts that are read together advance by at least this many tokens each in a step, however many they are.
_SMALLEST_PART = 32
# Tokens of a request without keys and values, a recurrent model's, where nothing else bounds it.
_UNBOUNDED = 1 << 20

T = TypeVar("T")


class Waiting:
    """The requests that wait, in the order in which they are to begin, grouped by call.

    The first one is found in time that does not depend on how many wait.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[object, deque[Running]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Running]:
        return chain.from_iterable(self._calls.values())

    def append(self, one: Running) -> None:
        """Add a request after all others."""
        self._calls.setdefault(one.request.call, deque()).append(one)
        self._count += 1

    def put_back(self, one: Running) -> None:
        """Add a request before all others."""
        self._calls.setdefault(one.request.call, deque()).appendleft(one)
        self._calls.move_to_end(one.request.call, last=False)
        self._count += 1

    def discard(self, one: Running) -> None:
        """Remove a request, where it waits."""
        queue = self._calls.get(one.request.call, deque())
        if one in queue:
            queue.remove(one)
            self._count -= 1
            if not queue:
                del self._calls[one.request.call]

    def first(self, running: Counter[object]) -> Running:
        """The first request of a call with the fewest running requests; `running` counts these by call.

        Calls with running requests are no more than those, and the first call without any ends the search.
        """
        best = None
        for call in self._calls:
            if best is None or running[call] < running[best]:
                best = call
            if not running[call]:
                break
        return self._calls[best][0]


class Batcher:
    """Runs requests, new ones at any time, for any number of threads.

    Args:
        executor: that computes.
        eos: tokens that end a text.
        tokenizer: for text and stop strings, where there is one.
        prefill_tokens: prompt tokens in a step.
        most: requests that run at a time; the others wait.

    Attributes:
        executor, eos, tokenizer, prefill_tokens, most: as given.
        tree: keys and values that are kept for later requests; None for a model with a recurrent state.
        running: requests with keys and values, the oldest first.
        waiting: requests that have not begun, or gave up their keys and values.
        speculators: that write with drafts.
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
        # A recurrent state cannot be reused from the middle of a text.
        self.tree = PrefixTree(executor.pool) if executor.rewindable else None
        self.running: list[Running] = []
        self.waiting = Waiting()
        # What `start` adds, from any thread: a deque takes it in one piece. The next turn moves it to `waiting`.
        self._arrived: deque[Running] = deque()
        self.speculators = Speculators(executor)
        self._turns = Turns(weakref.WeakMethod(self._forked))

    def prepare(self, request: Request) -> Running:
        """Check a request; it begins with `start`.

        Raises `RequestError` for an empty prompt, numbers that are not tokens of the model, and for more tokens than
        the model has positions for or fit into the memory for keys and values.
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
                "give more memory (kv_memory=), or generate fewer tokens"
            )
        return running

    def most_tokens(self, mask: Halves) -> int:
        """How many tokens of one request under a mask (uint8 [L]) fit into the memory for keys and values."""
        pool = self.executor.pool
        page = int(pool.page_bytes[self.executor.sequence(mask).layers].sum())
        return pool.budget // page * PAGE if page else _UNBOUNDED

    def start(self, runnings: Sequence[Running]) -> None:
        """Add prepared requests; they begin in one of the next steps."""
        self._arrived.extend(runnings)

    def add(self, request: Request) -> Running:
        """`prepare` and `start`."""
        running = self.prepare(request)
        self.start([running])
        return running

    def cancel(self, *runnings: Running) -> None:
        """End requests that have not ended, and give the pages of their keys and values back to the pool.

        For answers that nobody waits for any more, such as those of a client that went away. Never waits: while another
        thread computes a step, the requests end after it.
        """

        def drop() -> None:
            for one in runnings:
                self._drop(one)

        self._turns.post(drop)

    def step(self) -> list[Running]:
        """Compute one step; return the requests that got a token in it, or ended (`finish`, `error`)."""
        return self._turns.call(self._step)

    def run(self) -> None:
        """Compute until every request has ended."""
        while not self.idle:
            self.step()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self._arrived or self.waiting or self.running)

    def wait(self, runnings: Sequence[Running], tokens: float = math.inf) -> None:
        """Compute, or let other threads compute, until each of these has more than `tokens` tokens or has ended.

        Raises the first error of these requests, as soon as there is one.
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

    def between_steps(self, job: Callable[[], T]) -> T:
        """Do a job between two steps; return or raise what it does."""
        return self._turns.call(job)

    def forget(self) -> None:
        """Free the keys and values that are kept for later requests."""
        if self.tree is not None:
            self._turns.call(self.tree.clear)

    def drafting(self) -> dict[str, int]:
        """Counts of drafts so far: `Speculators.counts`."""
        return self._turns.call(self.speculators.counts)

    def _forked(self) -> None:
        """In a forked child: end the requests of threads that do not exist there."""
        requests = [*self.running, *self.waiting, *self._arrived]
        self.cancel(*(one for one in requests if one.waiter not in (None, threading.get_ident())))

    # All methods below run in turns: one thread at a time.

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
        """End a request by an error."""
        self._let_go(one)
        one.error = error

    def _take_in(self) -> None:
        while self._arrived:
            self.waiting.append(self._arrived[0])
            self._arrived.popleft()

    def _let_go(self, one: Running) -> None:
        self._take_in()
        if one in self.running:
            self.running.remove(one)
        else:
            self.waiting.discard(one)
        one.sequence.release()

    def _put_back(self, one: Running) -> None:
        """Free the keys and values of a running request, which reads its tokens again later."""
        self.running.remove(one)
        one.sequence.release()
        self.waiting.put_back(one)

    def _admit(self) -> None:
        """Let waiting requests begin, as far as there is room."""
        self._take_in()
        if not self.waiting:
            return
        room = self.executor.pool.budget - sum(map(self._room, self.running))
        while self.waiting:
            by_call: Counter[object] = Counter(one.request.call for one in self.running)
            one = self.waiting.first(by_call)
            if self._is_full(len(self.running), room, one):
                # No call waits for all requests of another one: the youngest of the largest call make room.
                youngest = [] if by_call[one.request.call] else self._making_room(one, room, by_call)
                for each in youngest:
                    room += self._room(each)
                    if self.tree is not None:
                        self.tree.insert(each.sequence)
                    self._put_back(each)
                if not youngest:
                    return
            self.waiting.discard(one)
            room -= self._room(one)
            reused = 0 if self.tree is None else self.tree.match(one.sequence, one.known)
            if not one.started:  # what it finds again after giving way was its own
                one.started, one.reused_tokens = time.perf_counter(), reused
            self.running.append(one)

    def _is_full(self, running: int, room: int, one: Running) -> bool:
        """Whether a request cannot begin with `running` others and `room` bytes left; alone it can."""
        return running > 0 and (running >= self.most or room < self._room(one))

    def _making_room(self, one: Running, room: int, by_call: Counter[object]) -> list[Running]:
        """The running requests that have to be put back for one to begin; none where even that does not suffice.

        They are the youngest of the call that has most, which keeps one at least. `by_call` is changed.
        """
        found: list[Running] = []
        left = list(self.running)
        while self._is_full(len(left), room, one):
            largest, count = by_call.most_common(1)[0]
            if count < 2:
                return []
            found.append([each for each in left if each.request.call is largest][-1])
            left.remove(found[-1])
            by_call[largest] -= 1
            room += self._room(found[-1])
        return found

    def _room(self, one: Running) -> int:
        """Bytes that a request needs to begin, or to continue for a while."""
        return self._bytes(one, len(one.known) + PAGE)

    def _choose(self) -> list[tuple[Running, list[int]]]:
        """The requests of the next step, and the tokens of each that it computes."""
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
            if self.executor.rewindable:  # a recurrent state reads a prompt in one piece
                size = min(size, max(_SMALLEST_PART, room // len(alike)))
            chosen += [(one, one.known[length : length + size]) for one in alike]
            reading = [one for one in reading if one not in alike]
            room -= size * len(alike)
        return chosen

    def _accept(self, runnings: list[Running], chunks: list[Chunk]) -> list[Running]:
        """Compute a token of each request whose chunk wants one."""
        answering = [one for one, chunk in zip(runnings, chunks, strict=True) if chunk.wanted]

        def take(one: Running, pick: Callable[[], int]) -> None:
            token = pick()
            if self.tree is not None and not one.steps:
                self.tree.insert(one.sequence)  # the prompt, for those that come while this one still answers
            if one.accept(token):
                self._end(one)

        return self._shared_out(runnings, answering, lambda: self._computed(answering, chunks), take)

    def _shared_out(
        self,
        runnings: list[Running],
        answering: list[Running],
        compute: Callable[[], Sequence[T]],
        take: Callable[[Running, T], None],
    ) -> list[Running]:
        """Compute for `runnings` and give each of `answering` its result; an error ends the request it belongs to."""
        try:
            results = compute()
        except PoolFullError:
            raise
        except Exception as error:
            return self._one_by_one(runnings, error)
        for one, result in zip(answering, results, strict=True):
            try:
                take(one, result)
            except Exception as error:
                self._fail(one, error)
        return answering

    def _computed(self, answering: list[Running], chunks: list[Chunk]) -> Sequence[Callable[[], int]]:
        """Compute the chunks; return for each answering request a function that chooses and records its next token."""
        scored = any(one.request.logprobs is not None for one in answering)
        if not scored and all(one.request.sampling.plain for one in answering):
            best = self.executor.best(chunks).tolist()
            return [partial(one.sampler.noted, token) for one, token in zip(answering, best, strict=True)]
        if not scored and (reach := self._reach(answering)):
            logits, tokens = (each.cpu() for each in self.executor.top(chunks, reach))
            rows = zip(answering, logits, tokens, strict=True)
            return [partial(one.sampler.next_among, *row) for one, *row in rows]
        all_logits = self.executor.run(chunks).cpu()  # samplers keep what they count there
        for one, row in zip(answering, all_logits, strict=True):
            one.logits = row if one.request.logprobs is not None else None
        return [partial(one.sampler.next, row) for one, row in zip(answering, all_logits, strict=True)]

    def _one_by_one(self, runnings: list[Running], error: Exception) -> list[Running]:
        """A step failed: compute each of its requests alone, from its first token, so that the error ends only one."""
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
        """How many most likely tokens suffice for the choices of all these; 0 where all logits are needed."""
        reaches = [one.request.sampling.reach for one in runnings]
        return max(reaches) if min(reaches) > 0 and max(reaches) <= min(_MOST_LIKELY, self.executor.vocab_size) else 0

    def _end(self, one: Running) -> None:
        """Keep the keys and values of an ended request for later ones."""
        self.running.remove(one)
        if self.tree is not None:
            self.tree.insert(one.sequence)
        one.sequence.release()

    def _speculator(self) -> Speculator | None:
        """The speculator for the next step; None unless all requests generate, under one mask and one draft."""
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
        """Compute a step, or a round of drafts, for all running requests."""
        runnings = list(self.running)
        writers = [Writer(one.sequence, one.known[-1], one.sampler, one.room) for one in runnings]

        def take(one: Running, tokens: list[int]) -> None:
            if any(one.accept(token) for token in tokens):  # up to the one that ends it
                one.sequence.truncate(min(one.sequence.length, len(one.known) - 1))
                self._end(one)

        return self._shared_out(runnings, runnings, lambda: speculator.advance(writers), take)

    def _bytes(self, one: Running, tokens: int) -> int:
        """Bytes of the keys and values of `tokens` tokens, where none are shared."""
        pool = self.executor.pool
        return pages_for(tokens) * int(pool.page_bytes[one.sequence.layers].sum())
