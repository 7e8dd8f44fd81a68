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
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.masks import Halves, MaskLike, read_mask
from layercoop_fast.runtime.pages import PAGE, PagePool
from layercoop_fast.runtime.sequences import Sequence, pages_for
from layercoop_fast.runtime.sharing import find_parents

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Chunk:
    """New tokens of a sequence, at least one; the logits of the last `wanted` of them come back."""

    sequence: Sequence
    tokens: Several[int]
    wanted: int = 1


@dataclass(frozen=True)
class Rows:
    """What an executor computes in one call: R rows (tokens) of S sequences; all pages are in place.

    Row r begins as the embedding of its token where `parent[r]` is -1, else as the state that row `parent[r]` has
    before block `fork[r]`. Block l runs for the rows with `fork[r] <= l` whose sequence keeps it: it writes their keys
    and values to page `tables[s, l, position // PAGE]`, slot `position % PAGE`, and attends to all of the sequence's
    tokens up to its own position. A row below its fork is computed by its parent, and its pages are the parent's.

    Attributes:
        tokens, positions, sequence: int32 [R]; the rows of a sequence stand together, in order.
        parent, fork: int32 [R]; a parent stands earlier.
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
    sequences: tuple[Sequence, ...]


class Executor(ABC):
    """Runs chunks of sequences under masks.

    Args:
        pool: of the pages; the memory behind their numbers is the subclass's.
        vocab_size: words of the head, V.
        max_tokens: the longest sequence that the model has positions for, None where it states none.
        held: uint8 [L], the halves of blocks whose weights are there; None for all.
        rewindable: whether sequences can be truncated.

    A subclass computes rows (`logits`, perhaps `best_words`), copies pages, and says what its weights take.
    """

    name: str
    """What computes the blocks, in a word or two for people: "native int8", "transformers"."""
    weight_bytes: int
    """Bytes of the weights as they are held."""

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

    computed: int
    """Block evaluations so far: rows x blocks that ran, shared ones once."""

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.pool.page_bytes)

    @abstractmethod
    def logits(self, rows: Rows) -> Tensor:
        """Compute the rows: float32 [K, V], the logits of `rows.wanted`."""

    def best_words(self, rows: Rows) -> Tensor:
        """Compute the rows: int64 [K], the likeliest word after each of `rows.wanted` (the lowest number of equals)."""
        return self.logits(rows).argmax(-1)

    @abstractmethod
    def copy_page(self, layer: int, source: int, target: int) -> None:
        """Copy a page of a block, whole."""

    def sequence(self, mask: MaskLike | None = None) -> Sequence:
        """An empty sequence under a mask (as `read_mask` takes it); raises `RequestError` for one that cannot run."""
        return Sequence(self.pool, read_mask(mask, self.n_layers, self.held), rewindable=self.rewindable)

    def run(self, chunks: Several[Chunk]) -> Tensor:
        """Compute the chunks; float32 [sum of wanted, V], the logits in the order of the chunks and their tokens.

        Raises `RequestError` for an empty chunk, a token that is no word, or more tokens than the model has positions
        for, and `PoolFullError` where the pages do not fit. Nothing has changed then.
        """
        return self._run(chunks, best=False)

    def best(self, chunks: Several[Chunk]) -> Tensor:
        """Compute the chunks; int64 [sum of wanted], the likeliest next word each. Raises as `run`."""
        return self._run(chunks, best=True)

    def bytes_needed(self, chunks: Several[Chunk]) -> int:
        """Bytes of pages that `run` would take at most."""
        return self._needed(chunks, find_parents([c.sequence for c in chunks], [c.tokens for c in chunks]))

    def _run(self, chunks: Several[Chunk], *, best: bool) -> Tensor:
        self._check(chunks)
        parents = find_parents([c.sequence for c in chunks], [c.tokens for c in chunks])
        self.pool.reserve(self._needed(chunks, parents))
        try:
            self._make_room(chunks, parents)
            rows, which = _rows(chunks, parents)
            with torch.inference_mode():
                out = self.best_words(rows) if best else self.logits(rows)
        except BaseException:
            for chunk in chunks:
                chunk.sequence.trim()
            raise
        own = np.arange(self.n_layers) >= rows.fork[:, None]
        self.computed += int((rows.masks[rows.sequence][own] > 0).sum())
        for chunk in chunks:
            chunk.sequence.tokens.extend(map(int, chunk.tokens))
        return out[torch.from_numpy(which)]

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
            total = chunk.sequence.length + len(chunk.tokens)
            if self.max_tokens is not None and total > self.max_tokens:
                raise RequestError(f"the model has positions for {self.max_tokens} tokens, not for {total}")

    def _needed(self, chunks: Several[Chunk], parents: Several[tuple[int, int]]) -> int:
        """Bytes of new pages, copies of shared ones included."""
        total = 0
        for chunk, (_, fork) in zip(chunks, parents, strict=True):
            sequence = chunk.sequence
            layers = sequence.layers[sequence.layers >= fork]
            new = pages_for(sequence.length + len(chunk.tokens)) - sequence.n_pages
            total += new * int(self.pool.page_bytes[layers].sum())
            total += int(self.pool.page_bytes[self._shared(sequence, layers)].sum())
        return total

    def _shared(self, sequence: Sequence, layers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of these blocks, those whose last page is begun and held by others too: writing there needs a copy."""
        if sequence.length % PAGE == 0:
            return layers[:0]
        return layers[self.pool.references(layers, sequence.tables[layers, sequence.n_pages - 1]) > 1]

    def _make_room(self, chunks: Several[Chunk], parents: Several[tuple[int, int]]) -> None:
        """Pages for the new tokens: new ones, copies of those that others hold, and the parents' below a fork."""
        for chunk, (parent, fork) in zip(chunks, parents, strict=True):
            # First what a parent writes for both is let go, so that it is not copied as if a stranger held it.
            if parent >= 0:
                chunk.sequence.unlink(fork, chunk.sequence.length // PAGE)
        for chunk, (parent, fork) in zip(chunks, parents, strict=True):
            sequence, end = chunk.sequence, pages_for(chunk.sequence.length + len(chunk.tokens))
            sequence.widen(end)
            own = sequence.layers[sequence.layers >= fork]
            for layer in self._shared(sequence, own):
                at = sequence.n_pages - 1
                old, new = int(sequence.tables[layer, at]), self.pool.take(layer)
                self.copy_page(int(layer), old, new)
                self.pool.drop(layer, [old])
                sequence.tables[layer, at] = new
            for at in range(sequence.n_pages, end):
                sequence.tables[own, at] = [self.pool.take(layer) for layer in own]
            if parent >= 0:
                sequence.link(chunks[parent].sequence, fork, sequence.length // PAGE, end)


def _rows(chunks: Several[Chunk], parents: Several[tuple[int, int]]) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The rows of a call, and for every row of logits that the chunks want, which of `wanted` it is."""
    sequences = tuple(chunk.sequence for chunk in chunks)
    n_layers = len(sequences[0].mask)
    sizes = [len(chunk.tokens) for chunk in chunks]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    offsets = np.concatenate([np.arange(size) for size in sizes])
    parent = np.repeat([starts[parent] if parent >= 0 else -1 for parent, _ in parents], sizes)
    wanted = []
    for number, chunk in enumerate(chunks):
        # One that is the same throughout has its parent's logits.
        source = parents[number][0] if parents[number][1] == n_layers else number
        end = starts[source] + sizes[source]
        wanted.append(np.arange(end - chunk.wanted, end))
    distinct, which = np.unique(np.concatenate(wanted), return_inverse=True)
    rows = Rows(
        tokens=np.concatenate([np.asarray(chunk.tokens) for chunk in chunks]).astype(np.int32),
        positions=(np.repeat([sequence.length for sequence in sequences], sizes) + offsets).astype(np.int32),
        sequence=np.repeat(np.arange(len(chunks)), sizes).astype(np.int32),
        parent=np.where(parent >= 0, parent + offsets, -1).astype(np.int32),
        fork=np.repeat([fork for _, fork in parents], sizes).astype(np.int32),
        masks=np.stack([sequence.mask for sequence in sequences]).astype(np.uint8),
        tables=_stacked([sequence.tables for sequence in sequences]),
        lengths=np.array([sequence.length for sequence in sequences], dtype=np.int32),
        wanted=distinct.astype(np.int32),
        sequences=sequences,
    )
    return rows, which.reshape(-1)


def _stacked(tables: list[Ints]) -> Ints:
    """Tables int32 [L, P] of different widths as one [S, L, P]; of one sequence without a copy."""
    if len(tables) == 1:
        return tables[0][None]
    stacked = np.full((len(tables), len(tables[0]), max(table.shape[1] for table in tables)), -1, dtype=np.int32)
    for at, table in enumerate(tables):
        stacked[at, :, : table.shape[1]] = table
    return stacked
