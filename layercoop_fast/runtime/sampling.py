"""From logits to the next token: greedy, or drawn from a distribution shaped by temperature and truncation.

Order and meaning are those of transformers' `generate`: repetition penalty, temperature, top-k, top-p, min-p. Every
request has its own `Sampler` with its own random numbers, so that its tokens do not depend on the other requests of the
batch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.errors import RunError
from layercoop_fast.runtime.options import Sampling

# This many of the most likely tokens suffice for any usual top-p; where they do not, all tokens are sorted.
_MOST_LIKELY = 512


class Sampler:
    """The choices of one request.

    Args:
        sampling: how to choose.
        tokens: of the prompt, which the repetition penalty counts too.
        index: number of the request among those of one call, so that they draw differently from one seed.
    """

    def __init__(self, sampling: Sampling, tokens: Iterable[int] = (), *, index: int = 0) -> None:
        self.sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)
        self._random = np.random.default_rng([seed, index])
        self._noted = list(tokens)
        self._seen: Tensor | None = None

    def accept(self, tokens: Iterable[int]) -> None:
        """Record tokens of the answer; `next` does this itself."""
        self._noted.extend(tokens)

    def next(self, logits: Tensor) -> int:
        """Choose the next token from logits [V], and record it."""
        token = self.pick(logits)
        self.accept([token])
        return token

    def noted(self, token: int) -> int:
        """Record a token that was chosen elsewhere, and return it."""
        self.accept([token])
        return token

    def pick(self, logits: Tensor) -> int:
        """Choose the next token from logits [V]."""
        return self.choose(logits[None])[0] if self.sampling.greedy else self.draw(self.probabilities(logits[None])[0])

    def next_among(self, logits: Tensor, tokens: Tensor) -> int:
        """Choose the next token among the most likely ones, at least `sampling.reach`, and record it.

        `logits` [N] are descending, `tokens` int64 [N] are their tokens. The choice is that of `next` on all logits,
        except that ties with the k-th token beyond the given ones are not chosen.
        """
        _check_finite(logits[:1])
        if self.sampling.greedy:
            token = int(tokens[0])
        else:
            # In the order of the token numbers, so that a random number selects the same token as from all logits.
            order = tokens.argsort()
            token = int(tokens[order[self.draw(self.probabilities(logits[order][None])[0])]])
        self.accept([token])
        return token

    def choose(self, logits: Tensor, following: Sequence[int] = (), first: int = 0) -> list[int]:
        """The most likely token of each row of logits [R, V]; `following` and `first` are as of `probabilities`."""
        best, tokens = self._penalised(logits, following, first).max(dim=-1)
        _check_finite(best)
        return [int(token) for token in tokens]

    def probabilities(self, logits: Tensor, following: Sequence[int] = (), first: int = 0) -> Tensor:
        """Distributions of the next token, float32 [R, V], from logits [R, V].

        Row r follows the accepted tokens and the first `first + r` tokens of `following`. Greedy distributions are 1 at
        one token.
        """
        scores = self._penalised(logits, following, first)
        best = scores.amax(dim=-1, keepdim=True)
        _check_finite(best)
        asked = self.sampling
        if asked.greedy:
            return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        # With the largest score at 0, no temperature, however small, makes it infinite.
        scores = (scores - best) / asked.temperature
        if 0 < asked.top_k < scores.shape[-1]:
            last = scores.topk(asked.top_k, dim=-1).values[:, -1:]
            scores.masked_fill_(scores < last, -math.inf)
        if asked.top_p < 1:
            scores.masked_fill_(~_nucleus(scores.softmax(dim=-1), asked.top_p), -math.inf)
        if asked.min_p > 0:
            scores.masked_fill_(scores.exp() < asked.min_p, -math.inf)
        return scores.softmax(dim=-1)

    def draw(self, probabilities: Tensor) -> int:
        """Draw a token from weights [V], which need not sum to 1, with one random number."""
        heights = probabilities.double().cumsum(dim=-1)
        token = int(torch.searchsorted(heights, self.uniform() * heights[-1], right=True))
        return token if token < len(heights) else int(probabilities.nonzero()[-1])

    def uniform(self) -> float:
        """The request's next random number, uniform in [0, 1)."""
        return float(self._random.random())

    def _penalised(self, logits: Tensor, following: Sequence[int], first: int) -> Tensor:
        """Logits in fp32 with the repetition penalty, [R, V]; the given tensor itself where there is none."""
        scores, penalty = logits.float(), self.sampling.repetition_penalty
        if penalty == 1:
            return scores
        if self._seen is None:
            self._seen = torch.zeros(scores.shape[-1], dtype=torch.bool)
        self._seen[self._noted] = True
        self._noted.clear()
        seen = self._seen.repeat(len(scores), 1)
        for row, token in enumerate(following, start=1 - first):
            seen[max(row, 0) :, token] = True
        return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The tokens of the smallest set that reaches `top_p`, bool [R, V]: those that more likely ones do not reach."""
    count = min(_MOST_LIKELY, probabilities.shape[-1])
    values, tokens = probabilities.topk(count, dim=-1)
    if bool((values.sum(dim=-1) < top_p).any()):
        values, tokens = probabilities.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    kept = before < top_p
    kept[:, 0] = True
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter_(-1, tokens, kept)


def _check_finite(best: Tensor) -> None:
    """Raise `RunError` unless the largest logits are finite; `max` propagates NaN, so this finds any NaN."""
    if not bool(best.isfinite().all()):
        raise RunError("the model's logits are not finite: no next token can be chosen from them")
