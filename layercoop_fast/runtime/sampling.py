"""From logits to the next token: greedy, or drawn from a distribution that temperature and cuts have shaped.

The order and the meaning are those of transformers' `generate`: repetition penalty, temperature, top-k, top-p, min-p.
Every request has a `Sampler` of its own with its own random numbers, so what it draws does not depend on the requests
beside it.
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

# As many of the likeliest tokens hold any usual top-p; where they do not, everything is sorted.
_LIKELIEST = 512


class Sampler:
    """The choices of one request.

    Args:
        sampling: how to choose.
        tokens: what the repetition penalty counts from the start: the prompt.
        index: number of the request among those of one call, so that they draw differently from one seed.
    """

    def __init__(self, sampling: Sampling, tokens: Iterable[int] = (), *, index: int = 0) -> None:
        self.sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)
        self._random = np.random.default_rng([seed, index])
        self._noted = list(tokens)
        self._seen: Tensor | None = None

    def accept(self, tokens: Iterable[int]) -> None:
        """Note tokens that the answer now holds; `next` does it by itself."""
        self._noted.extend(tokens)

    def next(self, logits: Tensor) -> int:
        """Choose the next token from logits [V], and note it."""
        token = self.pick(logits)
        self.accept([token])
        return token

    def noted(self, token: int) -> int:
        """Note a token that was chosen elsewhere."""
        self.accept([token])
        return token

    def pick(self, logits: Tensor) -> int:
        """Choose the next token from logits [V]."""
        return self.choose(logits[None])[0] if self.sampling.greedy else self.draw(self.probabilities(logits[None])[0])

    def next_among(self, logits: Tensor, tokens: Tensor) -> int:
        """Choose the next token among the likeliest, `sampling.reach` or more of them, and note it.

        Logits [N] descend, `tokens` int64 [N] are theirs. The choice is that of `next` for all logits, but that of
        equals beyond what is given none is chosen.
        """
        _check_finite(logits[:1])
        if self.sampling.greedy:
            token = int(tokens[0])
        else:
            # In the order of the tokens, so that a random number falls where it would among all of them.
            order = tokens.argsort()
            token = int(tokens[order[self.draw(self.probabilities(logits[order][None])[0])]])
        self.accept([token])
        return token

    def choose(self, logits: Tensor, following: Sequence[int] = (), first: int = 0) -> list[int]:
        """The likeliest token after each row of logits [R, V]; rows come after tokens as in `probabilities`."""
        best, tokens = self._penalised(logits, following, first).max(dim=-1)
        _check_finite(best)
        return [int(token) for token in tokens]

    def probabilities(self, logits: Tensor, following: Sequence[int] = (), first: int = 0) -> Tensor:
        """Distributions of the next token, float32 [R, V], from logits [R, V].

        Row r is that after the accepted tokens and the first `first + r` of `following`. Greedy ones are 1 at one
        token.
        """
        scores = self._penalised(logits, following, first)
        best = scores.amax(dim=-1, keepdim=True)
        _check_finite(best)
        asked = self.sampling
        if asked.greedy:
            return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        # With the largest at 0 first, no temperature, however small, makes an infinity of it.
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
        """Logits in fp32 under the repetition penalty [R, V]; the caller's own where there is none."""
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
    """Which tokens the smallest set holds that reaches `top_p`, bool [R, V]: those before which less is reached."""
    count = min(_LIKELIEST, probabilities.shape[-1])
    values, tokens = probabilities.topk(count, dim=-1)
    if bool((values.sum(dim=-1) < top_p).any()):
        values, tokens = probabilities.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    kept = before < top_p
    kept[:, 0] = True
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter_(-1, tokens, kept)


def _check_finite(best: Tensor) -> None:
    """`max` carries NaN along, so the best of a row tells whether it has any."""
    if not bool(best.isfinite().all()):
        raise RunError("the model's logits are not finite: no next token can be chosen from them")
