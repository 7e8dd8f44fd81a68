"""The search for the blocks that a draft leaves out: a game whose worth is the speed-up of drafting with a mask.

With fewer blocks a draft is faster, but accepted less often. The worth of a mask is the speed-up at the best number of
drafts (`draft_length.speed_up`): the tokens that a round yields at its acceptance, over the time it takes. Acceptance
is measured as in drafting, on texts that the model itself writes: a few tokens are run under the mask after the model's
own keys and values, and its next tokens are compared with the model's. Times are measured once; that of a draft is
assumed to be linear in the number of blocks it keeps.

The masks are proposed by `search/coop.py`, first down to few blocks to find the best size, then at that size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves, read_mask
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.runtime.draft_length import MOST, speed_up
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.sampling import Sampler
from layercoop_fast.runtime.sequences import TokenSequence
from layercoop_fast.search import coop

# Tokens run at once after the model's own keys and values, and masks measured at once.
_DEPTH, _TOGETHER = 4, 8
# The first search removes at most this share of the blocks.
_MOST_REMOVED = 0.6
_REPEATS = 5


@dataclass(frozen=True)
class Times:
    """Times of calls on this machine, in seconds.

    Attributes:
        step: one token by the whole model.
        rest: the part of it outside the blocks: embedding and head.
        row: each further row of a call.
        n_layers: number of blocks of the whole model.
    """

    step: float
    rest: float
    row: float
    n_layers: int

    def draft(self, kept: int) -> float:
        """Seconds of one token by `kept` blocks."""
        return self.rest + (self.step - self.rest) * kept / self.n_layers

    def verify(self, rows: int) -> float:
        """Seconds of one call of `rows` rows by the whole model."""
        return self.step + (rows - 1) * self.row

    def best(self, acceptance: float, kept: int, most: int = MOST) -> tuple[float, int]:
        """The speed-up at the best number of drafts, at least one, and that number."""
        return max(
            (speed_up(acceptance, count, self.draft(kept), self.verify(count + 1), self.step), count)
            for count in range(1, most + 1)
        )


@dataclass(frozen=True, eq=False)
class Draft:
    """A mask to draft with, and its expected figures.

    Attributes:
        mask: bool [L], the blocks that the draft keeps.
        acceptance: the share of its tokens that the model accepts.
        share: time of drafting a token over that of a step.
        speed_up: tokens per second with it over those without; it does not pay at 1 or less.
        length: number of tokens drafted at once for this speed-up.
        n_masks: number of masks that were measured to find it.
    """

    mask: Masks
    acceptance: float
    share: float
    speed_up: float
    length: int
    n_masks: int

    @property
    def removed(self) -> list[int]:
        """The blocks that the draft leaves out."""
        return [int(block) for block in np.flatnonzero(~self.mask)]


class DraftGame:
    """A game from masks `bool[M, n]` of the blocks in memory to their speed-ups as drafts, `float64[M]`.

    Args:
        executor: runs the model; its sequences must be rewindable.
        texts: token lists; the last `tokens` of each are scored.
        tokens: positions scored in each text.
        times: of this machine; measured by default.
        sampling: how tokens will be chosen. With greedy choices, acceptance is the share of positions at which both
            choose the same token; with sampling, it is the overlap of both distributions.

    Attributes:
        blocks: int64 [n], the blocks that are the players.
        n_players: n.
        times: of this machine.
        acceptance: measured so far, by the bytes of a mask.
    """

    def __init__(
        self,
        executor: Executor,
        texts: Sequence[Sequence[int]],
        *,
        tokens: int,
        times: Times | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self._executor = executor
        self._halves = read_mask(None, executor.n_layers, executor.held)
        self.blocks = np.flatnonzero(self._halves)
        self.n_players = len(self.blocks)
        self._texts = [[int(token) for token in text] for text in texts]
        self._tokens = tokens
        self._sampling = sampling or Sampling()
        self.times = measured_times(executor, self._texts[0]) if times is None else times
        self.acceptance: dict[bytes, float] = {}
        self._whole = [self._as_chosen(text) for text in self._texts]

    def __call__(self, masks: Masks) -> Floats:
        """Speed-ups, float64 [M]; one mask `bool[n]` is one row."""
        rows = np.atleast_2d(np.asarray(masks, dtype=np.bool_))
        fresh = list({row.tobytes(): row for row in rows if row.tobytes() not in self.acceptance}.values())
        for start in range(0, len(fresh), _TOGETHER):
            self._measure(fresh[start : start + _TOGETHER])
        return np.array([self.worth(row)[0] for row in rows])

    def worth(self, mask: Masks) -> tuple[float, int]:
        """The speed-up of a measured mask, bool [n], and the best number of drafts."""
        return self.times.best(self.acceptance[mask.tobytes()], int(mask.sum()))

    def best(self) -> Masks:
        """The measured mask of the highest worth, bool [n], the full mask excluded."""
        masks = [np.frombuffer(key, dtype=np.bool_) for key in self.acceptance]
        return max((mask for mask in masks if not mask.all()), key=self.worth)

    def halves(self, mask: Masks) -> Halves:
        """The mask uint8 [L] for the executor, from a mask bool [n] of the players."""
        found = np.zeros_like(self._halves)
        found[self.blocks[mask]] = self._halves[self.blocks[mask]]
        return found

    def _measure(self, masks: list[Masks]) -> None:
        agreed = np.zeros(len(masks))
        empty = np.array([not mask.any() for mask in masks])
        running = [mask for mask in masks if mask.any()]
        for text, whole in zip(self._texts, self._whole, strict=True):
            agreed[~empty] += self._agreement(running, text, whole) if running else 0.0
        for mask, total in zip(masks, agreed, strict=True):
            self.acceptance[mask.tobytes()] = float(total) / (len(self._texts) * self._tokens)

    def _agreement(self, masks: list[Masks], text: list[int], whole: torch.Tensor) -> Floats:
        """Number of the text's scored positions at which each mask agrees with the model, float64 [M]."""
        sequences = [self._executor.sequence() for _ in masks]
        halves = [self.halves(mask) for mask in masks]
        agreed = np.zeros(len(masks))
        try:
            self._executor.run([Chunk(sequence, text, wanted=0) for sequence in sequences])
            first = len(text) - self._tokens
            # From the end to the beginning, so that keys and values before a draft are always the model's own.
            for start in range(first + (self._tokens - 1) // _DEPTH * _DEPTH, first - 1, -_DEPTH):
                tokens = text[start : min(start + _DEPTH, len(text))]
                for sequence in sequences:
                    sequence.truncate(start)
                said = self._said(sequences, tokens, halves, text[:start])
                agreed += self._overlap(said, whole[start - first : start - first + len(tokens)])
        finally:
            for sequence in sequences:
                sequence.release()
        return agreed

    def _said(
        self, sequences: list[TokenSequence], tokens: list[int], halves: list[Halves], before: list[int]
    ) -> torch.Tensor:
        """The choices of drafts after each token: int64 [M, T], or distributions [M, T, V]."""
        chunks = [
            Chunk(sequence, tokens, wanted=len(tokens), mask=mask)
            for sequence, mask in zip(sequences, halves, strict=True)
        ]
        if self._sampling.plain:
            return self._executor.best(chunks).cpu().reshape(len(chunks), -1)
        logits = self._executor.run(chunks).cpu().reshape(len(chunks), len(tokens), -1)
        return torch.stack([self._chances(rows, tokens, before) for rows in logits])

    def _chances(self, logits: torch.Tensor, tokens: list[int], before: list[int]) -> torch.Tensor:
        """Distributions [T, V] after each token; the repetition penalty counts the tokens before it."""
        return Sampler(self._sampling, [*before, *tokens[:1]]).probabilities(logits, tokens[1:])

    @staticmethod
    def _overlap(said: torch.Tensor, whole: torch.Tensor) -> Floats:
        agreed = (said == whole) if said.dim() == 2 else torch.minimum(said, whole).sum(dim=-1)
        return agreed.double().sum(dim=1).numpy()

    def _as_chosen(self, text: list[int]) -> torch.Tensor:
        """The model's choices after each of the text's scored tokens: int64 [T], or distributions [T, V]."""
        sequence = self._executor.sequence()
        chunk = Chunk(sequence, text, wanted=self._tokens)
        try:
            if self._sampling.plain:
                return self._executor.best([chunk]).cpu()
            first = len(text) - self._tokens
            return self._chances(self._executor.run([chunk]).cpu(), text[first:], text[:first])
        finally:
            sequence.release()


def find_draft(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int = 64,
    sampling: Sampling | None = None,
    times: Times | None = None,
    budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Draft:
    """Search the blocks that a draft of this model should leave out.

    Args:
        executor: runs the model; its sequences must be rewindable.
        prompts: token lists that the model continues; drafts are judged on the continuations.
        tokens: length of each continuation.
        sampling: how tokens will be chosen, greedily by default.
        times: of this machine, measured by default.
        budget: number of masks that may be measured: by default 5 for each block and 60 more, and at least 2 for each.
        seed: of the search.
        progress: called with ("drafts", masks measured, budget).

    Raises `RequestError` for a model with a recurrent state, without prompts, and for too small a budget.

    Examples:
        >>> from layercoop_fast import LayerSkipModel, find_draft
        >>> model = LayerSkipModel.from_pretrained("my-model")
        >>> draft = find_draft(model.executor, [[5, 6, 7]], tokens=8, budget=10)
        >>> len(model.generate([5, 6, 7], max_new_tokens=4, ignore_eos=True, draft=draft).tokens)
        4
    """
    if not executor.rewindable:
        raise RequestError("this model carries a recurrent state, which cannot be wound back: it has no drafts")
    if not prompts or not all(len(prompt) for prompt in prompts) or tokens < 1:
        raise RequestError("a draft is searched on texts that the model writes: give at least one prompt, none empty")
    n = int((read_mask(None, executor.n_layers, executor.held) > 0).sum())
    if n < 2:
        raise RequestError("a model of 1 block has no draft: it would leave out none")
    most = 5 * n + 60 if budget is None else budget
    if most < 2 * n:
        raise RequestError(f"the search for a draft measures at least two masks for each block: {2 * n}, not {most}")
    texts = [[*prompt, *_written(executor, prompt, tokens, sampling)] for prompt in prompts]
    game = DraftGame(executor, texts, tokens=tokens, times=times, sampling=sampling)

    def report(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress("drafts", min(len(game.acceptance), most), most)

    first = max(n + 1, most * 2 // 3)
    coop.search(game, max(1, math.floor(_MOST_REMOVED * n)), seed=seed, budget=first, progress=report)
    size = int((~game.best()).sum())
    left = most - len(game.acceptance)
    if left > 0:
        # Single blocks and the chain are measured already: they count in this search's budget, but cost nothing.
        coop.search(game, size, seed=seed, budget=left + n + 2 * size, progress=report)
    found = game.best()
    worth, length = game.worth(found)
    mask = np.zeros(executor.n_layers, dtype=np.bool_)
    mask[game.blocks[found]] = True
    share = game.times.draft(int(found.sum())) / game.times.step
    return Draft(mask, game.acceptance[found.tobytes()], share, worth, length, len(game.acceptance))


def measured_times(executor: Executor, text: Sequence[int], repeats: int = _REPEATS) -> Times:
    """The times of calls after the tokens `text`, each the least of some repeats."""
    n = executor.n_layers
    sequence = executor.sequence()
    kept = np.flatnonzero(sequence.mask)
    one = np.zeros(n, dtype=np.uint8)
    one[kept[0]] = sequence.mask[kept[0]]
    rows = min(MOST // 2 + 1, len(text))
    try:
        executor.run([Chunk(sequence, text, wanted=0)])
        at = sequence.length

        def seconds(tokens: Sequence[int], mask: Halves | None) -> float:
            def call() -> None:
                executor.best([Chunk(sequence, tokens, wanted=len(tokens), mask=mask)])
                sequence.truncate(at)

            return _least(call, repeats)

        step, alone, chunk = seconds(text[:1], None), seconds(text[:1], one), seconds(text[:rows], None)
    finally:
        sequence.release()
    block = max(step - alone, 0.0) / max(len(kept) - 1, 1)
    row = max(chunk - step, 0.0) / max(rows - 1, 1)
    return Times(step, max(alone - block, 0.0), row, len(kept))


def _least(call: Callable[[], None], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats + 1):
        started = perf_counter()
        call()
        best = min(best, perf_counter() - started)
    return best


def _written(executor: Executor, prompt: Sequence[int], tokens: int, sampling: Sampling | None) -> list[int]:
    """The model's continuation of a prompt."""
    sequence, sampler = executor.sequence(), Sampler(sampling or Sampling(), prompt)
    try:
        found = [sampler.next(executor.run([Chunk(sequence, prompt)])[0].cpu())]
        while len(found) < tokens:
            found.append(sampler.next(executor.run([Chunk(sequence, found[-1:])])[0].cpu()))
    finally:
        sequence.release()
    return found
