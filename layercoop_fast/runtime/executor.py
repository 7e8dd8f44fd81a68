"""What runs tokens through a model under masks: one protocol, whatever computes the blocks.

    a, b = executor.sequence(mask_a), executor.sequence(mask_b)
    logits = executor.run([Chunk(a, prompt), Chunk(b, prompt)])     # float32 [2, V], that of the last token of each
    logits = executor.run([Chunk(a, [5]), Chunk(b, [7, 8], wanted=2)])  # float32 [3, V]
    a.truncate(20), b.release()

One call runs one or several tokens of one or several sequences, each under its own mask; every block runs once, for the
rows that keep it. Sequences that begin alike in one call share the work of the blocks their masks agree on
(`sharing.py`) and hold the same pages there. An executor computes `Rows`; everything else is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves, MaskLike, read_mask
from layercoop_fast.runtime.pages import PAGE, PagePool
from layercoop_fast.runtime.sequences import TokenSequence, pages_for
from layercoop_fast.runtime.sharing import find_parents

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Chunk:
    """New tokens of a sequence, at least one; the logits of the last `wanted` of them come back.

    With a `mask`, uint8 [L] within that of the sequence, the tokens are a draft: they run under it, behind the keys and
    values that are there, and what they leave is no state of the sequence, which must be truncated to where it stood
    before it goes on without.
    """

    sequence: TokenSequence
    tokens: Several[int]
    wanted: int = 1
    mask: Halves | None = None

    @property
    def runs(self) -> Halves:
        """The mask that its tokens run under, uint8 [L]."""
        return self.sequence.mask if self.mask is None else self.mask

    def blocks_from(self, first: int) -> int:
        """How many blocks its tokens run, of those from number `first` on."""
        if first == 0 and self.mask is None:
            return self.sequence.n_blocks
        return int(np.count_nonzero(self.runs[first:]))


@dataclass(frozen=True)
class Rows:
    """What an executor computes in one call: R rows (tokens) of S sequences; all pages are in place.

    Row r begins as the embedding of its token where `parent[r]` is -1, else as the state that row `parent[r]` has
    before block `fork[r]`. Block l runs for the rows with `fork[r] <= l` whose sequence keeps it: it writes their keys
    and values to page `tables[s, l, position // PAGE]`, slot `position % PAGE`, and attends to all of the sequence's
    tokens up to its own position. A row below its fork is computed by its parent, and its pages are the parent's.

    Attributes:
        tokens, positions, sequence: int32 [R]; the rows of a sequence stand together, in order.
        parent, fork: int32 [R]; a parent comes before its rows.
        masks: uint8 [S, L], as `masks.Halves`: 1 keeps the attention of a block, 2 its MLP, 3 both.
        tables: int32 [S, L, P], page numbers, -1 where there is none.
        lengths: int32 [S], the tokens of each sequence before this call.
        wanted: int32 [K], the rows whose logits are asked for, none twice, none with `fork` = L.
        sequences: the S sequences, for executors that keep more than pages.
    """

    tokens: Ints
    positions: Ints
    sequence: Ints
    parent: Ints
    fork: Ints
    masks: npt.NDArray[np.uint8]
    tables: Ints
    lengths: Ints
    wanted: Ints
    sequences: tuple[TokenSequence, ...]


class Executor(ABC):
    """Runs chunks of sequences under masks.

    Args:
        pool: of the pages; the memory behind their numbers is the subclass's.
        vocab_size: tokens of the vocabulary, V.
        max_tokens: the longest sequence that the model has positions for, None where it states none.
        held: uint8 [L], the halves of blocks whose weights are there; None for all.
        rewindable: whether sequences can be truncated.

    A subclass computes rows (`logits`, perhaps `best_tokens` and `top_tokens`), copies pages, and says what its weights
    take.
    """

    name: str
    """What computes the blocks, in a word or two for people: "native int8", "transformers"."""
    weight_bytes: int
    """Bytes of the weights as they are held."""
    half_bytes: npt.NDArray[np.int64] | None = None
    """Int64 [L, 2], of them those of the attention and the MLP of each block; None: as the model's own tensors are."""

    def __init__(
        self,
        pool: PagePool,
        vocab_size: int,
        max_tokens: int | None,
        *,
        held: Halves | None = None,
        rewindable: bool = True,
    ) -> None:
        self.pool = pool
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        self.held = held
        self.rewindable = rewindable
        self.computed = 0

    @property
    def threads(self) -> int:
        """Threads that compute a call, on as many processors; 0 for one that a GPU computes."""
        return torch.get_num_threads()

    computed: int
    """Block evaluations so far: rows x blocks that ran, shared ones once."""

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.pool.page_bytes)

    @abstractmethod
    def logits(self, rows: Rows) -> Tensor:
        """Compute the rows: float32 [K, V], the logits of `rows.wanted`."""

    def best_tokens(self, rows: Rows) -> Tensor:
        """Compute the rows: int64 [K], the most likely token after each of `rows.wanted`, of equal ones the lowest."""
        return self.logits(rows).argmax(-1)

    def top_tokens(self, rows: Rows, count: int) -> tuple[Tensor, Tensor]:
        """Compute the rows: the `count` largest logits float32 [K, count], descending, and their tokens int64."""
        found = self.logits(rows).topk(count, dim=-1)
        return found.values, found.indices

    @abstractmethod
    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page of a block, whole."""

    def sequence(self, mask: MaskLike | None = None) -> TokenSequence:
        """An empty sequence under a mask [L] or [2L] (see `read_mask`); `RequestError` for one that cannot run."""
        return TokenSequence(self.pool, read_mask(mask, self.n_layers, self.held), rewindable=self.rewindable)

    def run(self, chunks: Several[Chunk]) -> Tensor:
        """Compute the chunks; float32 [sum of wanted, V], the logits in the order of the chunks and their tokens.

        Raises `RequestError` for an empty chunk, a token that is not in the vocabulary, or more tokens than the model
        has positions for, and `PoolFullError` where the pages do not fit. Nothing has changed then.
        """
        return self._run(chunks, lambda rows: (self.logits(rows),))[0]

    def best(self, chunks: Several[Chunk]) -> Tensor:
        """Compute the chunks; int64 [sum of wanted], the most likely next token each. Raises as `run`."""
        return self._run(chunks, lambda rows: (self.best_tokens(rows),))[0]

    def top(self, chunks: Several[Chunk], count: int) -> tuple[Tensor, Tensor]:
        """Compute the chunks; of each wanted row the `count` largest logits, descending, and their tokens.

        Returns float32 and int64 [sum of wanted, count]; `count` is at most V. Raises as `run`.
        """
        values, tokens = self._run(chunks, lambda rows: self.top_tokens(rows, count))
        return values, tokens

    def _run(self, chunks: Several[Chunk], compute: Callable[[Rows], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        self._check(chunks)
        plan = self._plan(chunks)
        self.pool.reserve(self._needed(plan))
        try:
            self._make_room(plan)
            rows, which = _rows(plan)
            with torch.no_grad():
                out = compute(rows)
        except BaseException:
            for chunk in chunks:
                chunk.sequence.trim()
            raise
        for item in plan:
            sequence = item.chunk.sequence
            self.computed += len(item.chunk.tokens) * item.chunk.blocks_from(item.fork)
            if item.chunk.mask is not None and sequence.drafted is None:
                sequence.drafted = sequence.length
            sequence.tokens.extend(map(int, item.chunk.tokens))
        return out if which is None else tuple(each[which] for each in out)

    def _plan(self, chunks: Several[Chunk]) -> list[_Planned]:
        """What each chunk takes from another one, and which pages it needs."""
        parents = _parents(chunks) if len(chunks) > 1 else [(-1, 0)]
        plan = []
        for chunk, (parent, fork) in zip(chunks, parents, strict=True):
            sequence = chunk.sequence
            own = sequence.layers if fork == 0 else sequence.layers[sequence.layers >= fork]
            end = pages_for(sequence.length + len(chunk.tokens))
            plan.append(_Planned(chunk, parent, fork, own, self._shared(sequence, own), sequence.n_pages, end))
        return plan

    def _check(self, chunks: Several[Chunk]) -> None:
        if len({id(chunk.sequence) for chunk in chunks}) < len(chunks) or not chunks:
            raise RequestError("a call runs one chunk or more, each of another sequence")
        for chunk in chunks:
            if not len(chunk.tokens):
                raise RequestError("a chunk holds one token at least")
            if not 0 <= chunk.wanted <= len(chunk.tokens):
                raise RequestError(f"a chunk of {len(chunk.tokens)} tokens has no {chunk.wanted} rows of logits")
            if min(chunk.tokens) < 0 or max(chunk.tokens) >= self.vocab_size:
                raise RequestError(f"tokens are numbers from 0 to {self.vocab_size - 1}")
            if chunk.mask is not None:
                self._check_draft(chunk, chunk.mask)
            elif chunk.sequence.drafted is not None:
                raise RequestError("the sequence ends with a draft: truncate it before it goes on")
            total = chunk.sequence.length + len(chunk.tokens)
            if self.max_tokens is not None and total > self.max_tokens:
                raise RequestError(f"the model has positions for {self.max_tokens} tokens, not for {total}")

    def _check_draft(self, chunk: Chunk, mask: Halves) -> None:
        if (mask & ~chunk.sequence.mask).any() or not mask.any():
            raise RequestError("the mask of a draft keeps some of the blocks that its sequence keeps, no others")
        if not self.rewindable:
            raise RequestError("this model carries a recurrent state, which no draft can be wound back from")

    def _needed(self, plan: Several[_Planned]) -> int:
        """Bytes of new pages, copies of shared ones included."""
        sizes = self.pool.page_bytes
        total = 0
        for item in plan:
            if item.end > item.begin:
                total += (item.end - item.begin) * int(sizes[item.own].sum())
            if len(item.shared):
                total += int(sizes[item.shared].sum())
        return total

    def _shared(self, sequence: TokenSequence, layers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of these blocks, those whose last page is begun and held by others too: writing there needs a copy."""
        if sequence.length % PAGE == 0:
            return layers[:0]
        return layers[self.pool.references(layers, sequence.tables[layers, sequence.n_pages - 1]) > 1]

    def _make_room(self, plan: Several[_Planned]) -> None:
        """Pages for the new tokens: new ones, copies of those that others hold, and the parents' below a fork."""
        for item in plan:
            # First what a parent writes for both is let go, so that it is not copied as if a stranger held it.
            if item.parent >= 0:
                item.chunk.sequence.unlink(item.fork, item.chunk.sequence.length // PAGE)
        for item in plan:
            sequence = item.chunk.sequence
            sequence.widen(item.end)
            if len(item.shared):
                at = item.begin - 1
                for layer in self._shared(sequence, item.shared).tolist():
                    old, new = int(sequence.tables[layer, at]), self.pool.take(layer)
                    self.copy_page(layer, old, new)
                    self.pool.drop(layer, [old])
                    sequence.tables[layer, at] = new
            for at in range(item.begin, item.end):
                sequence.tables[item.own, at] = [self.pool.take(layer) for layer in item.own.tolist()]
            if item.parent >= 0:
                parent = plan[item.parent].chunk.sequence
                sequence.link(parent, item.fork, sequence.length // PAGE, item.end)


@dataclass(frozen=True)
class _Planned:
    """A chunk, whose state it takes over at which block (`find_parents`), and its pages.

    `own` int64 are the blocks it writes pages in; `shared` those of them whose last page others hold too; pages from
    `begin` to `end` are new.
    """

    chunk: Chunk
    parent: int
    fork: int
    own: npt.NDArray[np.int64]
    shared: npt.NDArray[np.int64]
    begin: int
    end: int


def _parents(chunks: Several[Chunk]) -> list[tuple[int, int]]:
    """Whose state each chunk takes over, and at which block; drafts share nothing."""
    shared = [number for number, chunk in enumerate(chunks) if chunk.mask is None]
    found = find_parents([chunks[number].sequence for number in shared], [chunks[number].tokens for number in shared])
    parents = [(-1, 0)] * len(chunks)
    for number, (parent, fork) in zip(shared, found, strict=True):
        parents[number] = (shared[parent] if parent >= 0 else -1, fork)
    return parents


def _rows(plan: Several[_Planned]) -> tuple[Rows, Tensor | None]:
    """The rows of a call, and which of `wanted` each row of logits is that the chunks want (None: they are the same).

    Lists, not arrays, until the end: most calls have a few rows, and each costs a few microseconds so.
    """
    tokens: list[int] = []
    positions: list[int] = []
    sequence: list[int] = []
    parent: list[int] = []
    fork: list[int] = []
    starts: list[int] = []
    wanted: dict[int, int] = {}
    which: list[int] = []
    for number, item in enumerate(plan):
        count, start = len(item.chunk.tokens), len(tokens)
        starts.append(start)
        tokens.extend(map(int, item.chunk.tokens))
        length = item.chunk.sequence.length
        positions.extend(range(length, length + count))
        sequence.extend([number] * count)
        first = starts[item.parent] if item.parent >= 0 else -1
        parent.extend(range(first, first + count) if first >= 0 else [-1] * count)
        fork.extend([item.fork] * count)
        # One that is the same throughout has its parent's logits.
        end = (first if item.fork == len(item.chunk.sequence.mask) else start) + count
        which.extend(wanted.setdefault(row, len(wanted)) for row in range(end - item.chunk.wanted, end))
    sequences = tuple(item.chunk.sequence for item in plan)
    by_row = np.array([tokens, positions, sequence, parent, fork], dtype=np.int32)
    rows = Rows(
        tokens=by_row[0],
        positions=by_row[1],
        sequence=by_row[2],
        parent=by_row[3],
        fork=by_row[4],
        masks=plan[0].chunk.runs[None] if len(plan) == 1 else np.stack([item.chunk.runs for item in plan]),
        tables=_stacked([each.tables for each in sequences]),
        lengths=np.array([each.length for each in sequences], dtype=np.int32),
        wanted=np.array(list(wanted), dtype=np.int32),
        sequences=sequences,
    )
    return rows, None if len(which) == len(wanted) else torch.tensor(which)


def _stacked(tables: list[Ints]) -> Ints:
    """Tables int32 [L, P] of different widths as one [S, L, P]; of one sequence without a copy."""
    if len(tables) == 1:
        return tables[0][None]
    stacked = np.full((len(tables), len(tables[0]), max(table.shape[1] for table in tables)), -1, dtype=np.int32)
    for at, table in enumerate(tables):
        stacked[at, :, : table.shape[1]] = table
    return stacked
