"""A language model's head and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLosses:
    """Losses of R rows, in nats.

    Attributes:
        nll: fp32 [R], the negative log-likelihood of each target.
        kl: fp32 [R], the divergence of each row's distribution from the teacher's; None without a teacher.
    """

    nll: Tensor
    kl: Tensor | None = None


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    teacher: Tensor | None = None,
) -> TokenLosses:
    """Losses of states by the head's logits, which are all in memory at once: fp32 [R] (float64 for float64 inputs).

        z[r, v]  = cap · tanh(scale · (h[r] · w[v] + b[v]) / cap)      (without a cap: scale · (h[r] · w[v] + b[v]))
        nll[r]   = log Σ_v exp z[r, v] − z[r, target[r]]
        kl[r]    = Σ_v p[r, v] (log p[r, v] − log q[r, v]),  p = softmax(z of the teacher), q = softmax(z)

    hidden, teacher: [R, H]; weight: [V, H]; bias: [V]; targets: int64 [R]; fp32 or bf16, all alike. The product has the
    inputs' dtype, as a model's own head gives it.
    """

    def log_q(states: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(states, weight, bias)
        logits = scale * (logits if logits.dtype == torch.float64 else logits.float())
        if soft_cap is not None:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        return logits.log_softmax(-1)

    student = log_q(hidden)
    nll = -student.gather(1, targets[:, None])[:, 0]
    if teacher is None:
        return TokenLosses(nll)
    expected = log_q(teacher)
    return TokenLosses(nll, (expected.exp() * (expected - student)).sum(-1))


def divergence_reference(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of rows of logits [R, V]: [R], fp32 (float64 for float64 logits).

    kl[r] = Σ_v p[r, v] (log p[r, v] − log q[r, v]),  p = softmax(teacher), q = softmax(logits)
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_p, log_q = teacher.to(wide).log_softmax(-1), logits.to(wide).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def top_divergence_reference(logits: Tensor, tokens: Tensor, log_probs: Tensor, rest: Tensor) -> Tensor:
    """KL over K named tokens and one event that stands for all others: logits [R, V] → [R], dtypes as above.

        kl[r] = Σ_k p[r, k] (log p[r, k] − log q[r, t[r, k]]) + s[r] (log s[r] − log Σ_{v not in t[r]} q[r, v])

    with p = exp(log_probs) [R, K], s = `rest` [R] the teacher's probability of all other tokens, and t = `tokens` int64
    [R, K]. It is a lower bound of the divergence over all tokens (data processing inequality).
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_q, log_p, rest = logits.to(wide).log_softmax(-1), log_probs.to(wide), rest.to(wide)
    named = (log_p.exp() * (log_p - log_q.gather(1, tokens))).sum(-1)
    others = log_q.scatter(1, tokens, -torch.inf).logsumexp(-1)
    return named + torch.where(rest > 0, rest * (rest.clamp_min(torch.finfo(wide).tiny).log() - others), 0.0)
