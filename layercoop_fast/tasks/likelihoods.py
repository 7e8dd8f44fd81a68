"""Log-likelihoods of continuations under many masks: contexts and shared layers are computed once.

    likelihoods = Likelihoods(skeleton, masks)
    found = likelihoods.measure([Scored(tokens, start), ...])     # found.logprobs[mask, sequence]

Sequences that begin alike are branches of a tree of tokens (`texts/token_tree.py`), so the context of an item's
options is computed once, and masks that begin alike share blocks (`masked/plan.py`). The head runs for those rows
alone after which a token is scored, once for all options that branch off there. Where a model cannot compute trees
(`masked/trees.py`), and for sequences of more than 2,048 tokens, each sequence is a window of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masked.forward import free_memory, run_plan, split_memory
from layercoop_fast.masked.model import MEMORY_SHARE
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.players import make_players
from layercoop_fast.masked.pool_units import PoolUnits
from layercoop_fast.masked.scoring import HEAD_BYTES
from layercoop_fast.masked.trees import check_trees
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.units import Units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.halves import WHOLE, Halves
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.texts.token_tree import PACK_TOKENS, Packs, Scored, pack_trees, pack_whole

CHUNK_TOKENS = 16_384
"""Tokens of sequences that are in memory at a time: enough for fast products, few next to the weights."""


_WINDOWS = (256, 512, 1024, PACK_TOKENS)
"""Tokens of a window of trees, of which the cheapest is taken."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What M masks make of S sequences.

    Attributes:
        logprobs: float64 [M, S], log-probability of each sequence's scored tokens, summed.
        greedy: bool [M, S], whether each of these tokens was the most likely one.
    """

    logprobs: Floats
    greedy: Masks


@dataclass
class Work:
    """Tokens that went through blocks, counted once a block.

    Attributes:
        alone: if every sequence were computed by itself under every mask.
        computed: that were computed, those that windows are padded with included.
    """

    alone: int = 0
    computed: int = 0


class Likelihoods:
    """See the module.

    Args:
        skeleton: the model.
        masks: uint8 [L] each, the halves of blocks that a mask keeps; equal ones are computed once.
        memory: bytes for stored states and activations; None: a quarter of what is free.
        block_path: "auto" or "hf" (`make_units`).

    Attributes:
        work: done so far.

    Raises `RequestError` for halves of blocks that have none.
    """

    def __init__(
        self, skeleton: Skeleton, masks: Sequence[Halves], *, memory: int | None = None, block_path: str = "auto"
    ) -> None:
        self.skeleton = skeleton
        self.memory = memory
        self.block_path = block_path
        given = np.stack(masks)
        halves = bool(((given > 0) & (given < WHOLE)).any())
        self.players = make_players("sublayers" if halves else "layers", skeleton)
        bits = np.stack([given & 1, given >> 1], axis=2).astype(np.bool_)
        self.masks: Masks = bits.reshape(len(given), -1) if halves else bits[:, :, 0]
        self.work = Work()
        self._width = int(skeleton.model.get_input_embeddings().weight.shape[1])
        self._trees: tuple[int, bool] = (0, False)
        self._units: tuple[bool, int, Units] | None = None

    def measure(self, sequences: Sequence[Scored], progress: Progress | None = None) -> Measured:
        """Log-likelihoods of sequences under all masks; `progress` counts sequences.

        Raises `RequestError` for too little memory, and for tokens that the model does not have.
        """
        self._check(sequences)
        shape = len(self.masks), len(sequences)
        found = Measured(np.zeros(shape), np.zeros(shape, dtype=np.bool_))
        done = 0
        for tree, numbers in self._chunks(sequences):
            for mask, logprobs, greedy in self._scores([sequences[number] for number in numbers], tree=tree):
                found.logprobs[mask, numbers] = logprobs
                found.greedy[mask, numbers] = greedy
            done += len(numbers)
            if progress is not None:
                progress("requests", done, len(sequences))
        return found

    def _check(self, sequences: Sequence[Scored]) -> None:
        most = max((max(sequence.tokens) for sequence in sequences), default=0)
        if most >= self.skeleton.vocab_size:
            raise RequestError(
                f"the tokenizer gives token {most}, the model's vocabulary has {self.skeleton.vocab_size}: "
                "they do not belong together"
            )

    def _chunks(self, sequences: Sequence[Scored]) -> Iterator[tuple[bool, list[int]]]:
        """Parts that are computed at a time: whether as trees, and the sequences by number.

        Those for trees are sorted by their tokens, so that equal beginnings are neighbours; the others by length, so
        that little is padded. The longest sequence of either kind comes first: what is checked on it holds for all.
        """
        lengths = [len(sequence.tokens) for sequence in sequences]
        short = [number for number, length in enumerate(lengths) if length <= PACK_TOKENS]
        if short and not self._takes_trees(sequences[max(short, key=lengths.__getitem__)]):
            short = []
        whole = sorted(set(range(len(sequences))) - set(short), key=lambda number: -lengths[number])
        short.sort(key=lambda number: sequences[number].tokens)
        parts = self._cut(short, lambda before, number: _added(before, number, sequences))
        for part in sorted(parts, key=lambda part: -max(lengths[number] for number in part)):
            yield True, part
        for part in self._cut(whole, lambda _, number: lengths[number]):
            yield False, part

    def _takes_trees(self, longest: Scored) -> bool:
        """Whether the model's blocks compute trees as long as a sequence, tried on it with a fork at its end."""
        tried, can = self._trees
        if tried < len(longest.tokens):
            fork = Scored((*longest.tokens[:-2], *longest.tokens[-1:] * 2), longest.start)
            try:
                packs = pack_trees([[fork, longest]]).to(self.skeleton.device)
                check_trees(Windows(self.skeleton, packs.ids, positions=packs.positions))
                can = True
            except RequestError:
                can = False
            self._trees = len(longest.tokens), can
        return can

    def _cut(self, numbers: Sequence[int], cost: Callable[[int | None, int], int]) -> Iterator[list[int]]:
        """Runs of numbers that cost a chunk's tokens at most, one number at least.

        `cost` is told the number before in the run, None for the first, and the number.
        """
        # A state of each mask and as much for activations have to fit.
        state = (len(self.masks) + 1) * self._width * self.skeleton.dtype.itemsize
        most = min(CHUNK_TOKENS, self._memory() // (2 * state))
        part: list[int] = []
        tokens = 0
        for number in numbers:
            more = cost(part[-1] if part else None, number)
            if part and tokens + more > most:
                yield part
                part, tokens, more = [], 0, cost(None, number)
            part.append(number)
            tokens += more
        if part:
            yield part

    def _memory(self) -> int:
        if self.memory is not None:
            return self.memory
        return int(free_memory(self.skeleton.device) * MEMORY_SHARE)

    def _scores(self, sequences: Sequence[Scored], *, tree: bool) -> Iterator[tuple[int, Floats, Masks]]:
        """Every mask's number with the log-probabilities, float64 [S], and greedy flags, bool [S], of a chunk."""
        if tree:
            groups = [list(group) for _, group in groupby(sequences, key=lambda one: one.tokens[: one.start])]
            packs = pack_trees(groups, self._window(groups))
        else:
            packs = pack_whole([sequences])
        packs = packs.to(self.skeleton.device)
        windows = Windows(self.skeleton, packs.ids, positions=packs.positions)
        units = self._units_for(windows, max(len(sequence.tokens) for sequence in sequences))
        states, max_rows = split_memory(windows, units, self._memory())
        plan = build_plan(self.masks, states)
        head = _Head(windows, packs, [len(sequence.tokens) - sequence.start for sequence in sequences])
        found: dict[int, tuple[Floats, Masks]] = {}

        def score(number: int, state: Tensor) -> None:
            found[number] = head.scores(state)

        run_plan(windows, plan, score, units=units, max_rows=max_rows)
        self.work.alone += plan.skip * sum(len(sequence.tokens) - 1 for sequence in sequences)
        self.work.computed += plan.scheduled * packs.ids.numel()
        for mask, number in enumerate(plan.inverse.tolist()):
            yield (mask, *found[number])

    def _window(self, groups: Sequence[Sequence[Scored]]) -> int:
        """Tokens of a window of trees that make a chunk cheapest, attention over all of a window counted.

        Long windows share a beginning among more groups, and attention costs more in them.
        """
        sequences = [sequence for group in groups for sequence in group]
        added = [_added(number - 1 if number else None, number, sequences) for number in range(len(sequences))]
        lengths = [len(sequence.tokens) for sequence in sequences]

        def cost(limit: int) -> int:
            windows, filled = 1, 0
            for length, more in zip(lengths, added, strict=True):
                filled += more
                if filled > limit:
                    windows, filled = windows + 1, length
            # The products of a block cost 24 H² FLOP a token, attention 4 H for each token of the window.
            return windows * limit * (6 * self._width + limit)

        return min(_WINDOWS, key=cost)

    def _units_for(self, windows: Windows, longest: int) -> Units:
        """Units for windows whose longest sequence has so many tokens: made and checked once for each kind of window.

        One set exists at a time, since fast blocks hold joint weights of their own.
        """
        tree = windows.positions is not None
        if self._units is not None:
            of_trees, checked, units = self._units
            if of_trees == tree and longest <= checked and not isinstance(units, PoolUnits):
                return units.on(windows)
        self._units = None
        halves = self.players.sublayers is not None
        units = make_units(windows, self.players.run, halves=halves, block_path=self.block_path)
        self._units = tree, longest, units
        return units


def _added(before: int | None, number: int, sequences: Sequence[Scored]) -> int:
    """Tokens of a sequence that the one before it, in the same tree, does not begin with."""
    own = sequences[number].tokens
    if before is None:
        return len(own)
    pairs = enumerate(zip(own, sequences[before].tokens, strict=False))
    shortest = min(len(own), len(sequences[before].tokens))
    return len(own) - next((at for at, (one, other) in pairs if one != other), shortest)


class _Head:
    """Log-probabilities and greedy flags of a chunk's sequences, by the model's own head.

    Args:
        windows: of the chunk.
        packs: what is scored in them.
        lengths: scored tokens of each sequence, in order.
    """

    def __init__(self, windows: Windows, packs: Packs, lengths: Sequence[int]) -> None:
        self.context = windows.skeleton.context(windows.ids[:1, :1])
        self.step = max(1, HEAD_BYTES // (4 * windows.skeleton.vocab_size))
        # Options that branch off after one token are scored by the same logits.
        self.rows, row_of = torch.unique(packs.rows, return_inverse=True)
        order = torch.argsort(row_of, stable=True)
        self.row_of, self.targets = row_of[order], packs.targets[order]
        self.of_token = torch.argsort(order)[packs.of_token].cpu().numpy()
        self.firsts = np.cumsum([0, *lengths[:-1]])

    def scores(self, state: Tensor) -> tuple[Floats, Masks]:
        """Of a state [W, T, H]: log-probabilities, float64 [S], and greedy flags, bool [S]."""
        hidden = state.reshape(-1, state.shape[-1])[self.rows]
        logprobs: list[NDArray[np.float64]] = []
        greedy: list[NDArray[np.bool_]] = []
        for first in range(0, len(hidden), self.step):
            # Rows go through what comes behind the blocks as texts of one token each.
            logits = self.context.logits(hidden[first : first + self.step, None])[:, 0].float()
            begin, end = torch.searchsorted(self.row_of, torch.tensor([first, first + len(logits)]).to(logits.device))
            row, target = self.row_of[begin:end] - first, self.targets[begin:end]
            own = logits[row, target].double() - logits.logsumexp(dim=1).double()[row]
            logprobs.append(own.cpu().numpy())
            greedy.append((logits.argmax(dim=1)[row] == target).cpu().numpy())
        tokens, best = np.concatenate(logprobs)[self.of_token], np.concatenate(greedy)[self.of_token]
        return np.add.reduceat(tokens, self.firsts), np.logical_and.reduceat(best, self.firsts)
