"""Self-speculative decoding: the model under a smaller mask drafts tokens, and the whole model verifies them at once.

Draft and model share the weights and the sequence. A draft runs the blocks of its mask on the keys and values of the
*whole* model for all verified tokens (as Draft & Verify does, arXiv 2309.08168), so that it needs no prefill and no
memory of its own; its keys and values at new positions are overwritten by the verification. The verification is one
call with a row for each draft and one more, which reads the weights once.

Greedy tokens are those of the model without drafts. Sampled tokens have its distribution: a draft x is accepted with
probability min(1, p(x) / q(x)), and otherwise a token is drawn from max(0, p − q) (Leviathan et al., arXiv 2211.17192).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.halves import Halves, MaskLike, read_mask
from layercoop_fast.runtime.draft_length import DraftLength
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.sampling import Sampler
from layercoop_fast.runtime.sequences import TokenSequence


@dataclass
class Writer:
    """A sequence that is being generated.

    Attributes:
        sequence: of the computed tokens, which do not include `last`.
        last: the last chosen token.
        sampler: of the request; it has recorded all tokens up to `last`.
        room: how many tokens may still be generated.
    """

    sequence: TokenSequence
    last: int
    sampler: Sampler
    room: int


class Speculator:
    """Generates with drafts where that is faster.

    Args:
        executor: runs model and draft; its sequences must be rewindable.
        mask: of the draft, within that of the sequences, as for `read_mask`.
        whole: the mask of the sequences, by default all blocks in memory.
        draft_length: chooses the number of drafts; by default a new one, with the draft's share of the blocks.

    Attributes:
        executor: as given.
        mask: of the draft, uint8 [L].
        draft_length: as given.

    Raises `RequestError` for a model with a recurrent state, and for a draft that leaves nothing out.
    """

    def __init__(
        self,
        executor: Executor,
        mask: MaskLike,
        whole: MaskLike | None = None,
        *,
        draft_length: DraftLength | None = None,
    ) -> None:
        if not executor.rewindable:
            raise RequestError(
                "this model carries a recurrent state, which cannot be wound back: it generates without drafts"
            )
        self.executor = executor
        self.mask: Halves = read_mask(mask, executor.n_layers, executor.held)
        full = read_mask(whole, executor.n_layers, executor.held)
        if (self.mask == full).all():
            raise RequestError("the mask of the draft keeps every block: drafting would save nothing")
        share = float((self.mask > 0).sum() / (full > 0).sum())
        self.draft_length = DraftLength(share) if draft_length is None else draft_length

    def advance(self, writers: Sequence[Writer]) -> list[list[int]]:
        """Generate at least one token for each writer; return the new tokens of each.

        As before, each sequence holds all tokens except its last one.
        """
        drafted = self.draft_length.length(min(writer.room for writer in writers))
        if drafted:
            return self.round(writers, drafted)
        started = perf_counter()
        found = [[token] for token in self._step(writers)]
        self.draft_length.record_step(perf_counter() - started)
        return found

    def round(self, writers: Sequence[Writer], drafted: int) -> list[list[int]]:
        """Draft `drafted` tokens, verify them, and return the accepted ones and one more: 1 to `drafted` + 1 of each.

        After an error (for instance pages that do not fit) every sequence is as it was.
        """
        lengths = [writer.sequence.length for writer in writers]
        try:
            return self._round(writers, drafted, lengths)
        except BaseException:
            for writer, length in zip(writers, lengths, strict=True):
                writer.sequence.truncate(min(length, writer.sequence.length))
            raise

    def _round(self, writers: Sequence[Writer], drafted: int, lengths: list[int]) -> list[list[int]]:
        started = perf_counter()
        drafts: list[list[int]] = [[] for _ in writers]
        chances: list[list[Tensor]] = [[] for _ in writers]  # the distributions that drafts were drawn from
        for _ in range(drafted):
            self._draft(writers, drafts, chances)
        for writer, length in zip(writers, lengths, strict=True):
            writer.sequence.truncate(length)
        between = perf_counter()
        new = self._verify(writers, drafts, chances)
        for writer, length, tokens in zip(writers, lengths, new, strict=True):
            writer.sequence.truncate(length + len(tokens))
            writer.sampler.accept(tokens)
            writer.last = tokens[-1]
            writer.room -= len(tokens)
        ended = perf_counter()
        self.draft_length.record_round(drafted, [len(tokens) - 1 for tokens in new], between - started, ended - between)
        return new

    def _step(self, writers: Sequence[Writer]) -> list[int]:
        """One token of each writer, without drafts."""
        chunks = [Chunk(writer.sequence, [writer.last]) for writer in writers]
        if all(writer.sampler.sampling.plain for writer in writers):
            found = [int(token) for token in self.executor.best(chunks)]
        else:
            logits = self.executor.run(chunks).cpu()
            found = [writer.sampler.pick(row) for writer, row in zip(writers, logits, strict=True)]
        for writer, token in zip(writers, found, strict=True):
            writer.sampler.accept([token])
            writer.last = token
            writer.room -= 1
        return found

    def _draft(self, writers: Sequence[Writer], drafts: list[list[int]], chances: list[list[Tensor]]) -> None:
        """One more draft of each writer."""
        chunks = [
            Chunk(writer.sequence, [(drafts[at] or [writer.last])[-1]], mask=self.mask)
            for at, writer in enumerate(writers)
        ]
        if all(writer.sampler.sampling.plain for writer in writers):
            for own, token in zip(drafts, self.executor.best(chunks), strict=True):
                own.append(int(token))
            return
        logits = self.executor.run(chunks).cpu()
        for at, (writer, own) in enumerate(zip(writers, drafts, strict=True)):
            row, sampler = logits[at : at + 1], writer.sampler
            if sampler.sampling.greedy:
                own += sampler.choose(row, own, first=len(own))
            else:
                chances[at].append(sampler.probabilities(row, own, first=len(own))[0])
                own.append(sampler.draw(chances[at][-1]))

    def _verify(
        self, writers: Sequence[Writer], drafts: list[list[int]], chances: list[list[Tensor]]
    ) -> list[list[int]]:
        """The drafts that the model accepts, and one further token of its own, for each writer."""
        chunks = [
            Chunk(writer.sequence, [writer.last, *own], wanted=len(own) + 1)
            for writer, own in zip(writers, drafts, strict=True)
        ]
        rows = len(drafts[0]) + 1
        if all(writer.sampler.sampling.plain for writer in writers):
            best = self.executor.best(chunks).reshape(-1, rows).tolist()
            return [_agreeing(own, row) for own, row in zip(drafts, best, strict=True)]
        logits = self.executor.run(chunks).cpu()
        found = []
        for at, (writer, own) in enumerate(zip(writers, drafts, strict=True)):
            own_logits, sampler = logits[at * rows : (at + 1) * rows], writer.sampler
            if sampler.sampling.greedy:
                found.append(_agreeing(own, sampler.choose(own_logits, own)))
            else:
                found.append(_sampled(sampler, own, chances[at], sampler.probabilities(own_logits, own)))
        return found


def _agreeing(drafts: list[int], chosen: list[int]) -> list[int]:
    """The model's choices, up to and including the first that differs from the drafts."""
    count = next((at for at, (draft, own) in enumerate(zip(drafts, chosen, strict=False)) if draft != own), len(drafts))
    return chosen[: count + 1]


def _sampled(sampler: Sampler, drafts: list[int], drafted: list[Tensor], wanted: Tensor) -> list[int]:
    """Rejection sampling: drafts from the distributions `drafted`, k of [V], become tokens from `wanted` [k + 1, V]."""
    for at, (token, chances) in enumerate(zip(drafts, drafted, strict=True)):
        if sampler.uniform() * float(chances[token]) < float(wanted[at, token]):
            continue
        rest = (wanted[at] - chances).clamp_min(0)
        # Where both are equal up to rounding, the rest is zero, and the rejection was due to rounding.
        return [*drafts[:at], sampler.draw(rest if float(rest.sum()) > 0 else wanted[at])]
    return [*drafts, sampler.draw(wanted[-1])]


class Speculators:
    """The latest speculators, one for each mask, draft and number of requests, and the counts of all so far.

    Attributes:
        latest: at most `most` of them, the least recently used one first.
    """

    def __init__(self, executor: Executor, most: int = 16) -> None:
        self._executor, self._most = executor, most
        self.latest: OrderedDict[tuple[bytes, bytes, int], Speculator] = OrderedDict()
        self._gone: Counter[str] = Counter()

    def get(self, mask: Halves, draft: Halves, requests: int) -> Speculator:
        """The speculator for a mask and a draft, uint8 [L]; the least recently used one beyond `most` is dropped."""
        key = mask.tobytes(), draft.tobytes(), requests
        found = self.latest.pop(key, None) or Speculator(self._executor, draft, mask)
        self.latest[key] = found
        if len(self.latest) > self._most:
            _, oldest = self.latest.popitem(last=False)
            self._gone += Counter(_counts(oldest))
        return found

    def counts(self) -> dict[str, int]:
        """Totals of all so far: `rounds`, and tokens `drafted`, `judged` and `accepted`."""
        total = Counter(rounds=0, drafted=0, judged=0, accepted=0)
        for counts in (self._gone, *map(_counts, self.latest.values())):
            total.update(counts)
        return dict(total)


def _counts(speculator: Speculator) -> dict[str, int]:
    length = speculator.draft_length
    return {"rounds": length.rounds, "drafted": length.drafted, "judged": length.judged, "accepted": length.accepted}
