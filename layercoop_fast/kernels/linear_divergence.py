"""A language model's head, the divergence from a teacher behind it, and the gradient of both, some rows at a time.

The formulas are `divergence_reference` and `top_divergence_reference` of `reference/head.py`. With z the logits, q
their softmax and p the teacher's distribution, the gradient of a row's divergence is

    ∂kl/∂z[v] = q[v] − p[v],     with named tokens and a rest s that of other tokens v is    q[v] (1 − s / Σ_rest q)

so it is computed together with the value while rows of logits are in the processor's cache (on a CPU by
`csrc/blocks/slopes.h`), and multiplied by the weight at once. Logits of all rows are never in memory. Computing the
gradient in the forward pass is the idea of Liger Kernel's fused linear losses (arXiv 2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import array, is_native

# Rows whose logits are held at once in the inputs' dtype: enough for products at full speed.
ROWS = 256
# Logits that are worked on at once in fp32: on a CPU so few that the handful of passes over them stay in cache.
_AT_ONCE = {"cpu": 2**18}
_AT_ONCE_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Head:
    """An output projection and what follows it: z = cap · tanh(scale · logit / cap), or scale · logit without a cap.

    Attributes:
        weight: [V, H].
        bias: [V]; None where there is none.
        scale: of the logits.
        soft_cap: above 0; None: no cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, states: Tensor) -> Tensor:
        """The product alone, in the inputs' dtype: [R, H] → [R, V]."""
        return functional.linear(states, self.weight, self.bias)

    def ended(self, logits: Tensor) -> Tensor:
        """z of a few rows of products, in fp32 (float64 stays): [r, V] → [r, V]."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        if self.soft_cap is not None:
            return (wide * (self.scale / self.soft_cap)).tanh_().mul_(self.soft_cap)
        return wide if self.scale == 1.0 else wide * self.scale


@dataclass(frozen=True)
class TeacherStates:
    """A teacher as its states [R, H'] and its own head: its logits are computed a few rows at a time."""

    states: Tensor
    head: Head

    def rows(self, rows: slice) -> TeacherStates:
        """Some of its rows."""
        return TeacherStates(self.states[rows], self.head)


@dataclass(frozen=True)
class TopTokens:
    """A teacher as its K most likely tokens of each row; all other tokens are one event.

    Attributes:
        tokens: int64 [R, K].
        log_probs: [R, K], any float dtype.
        rest: fp32 [R], the probability of all other tokens.
    """

    tokens: Tensor
    log_probs: Tensor
    rest: Tensor

    def rows(self, rows: slice) -> TopTokens:
        """Some of its rows."""
        return TopTokens(self.tokens[rows], self.log_probs[rows], self.rest[rows])


def linear_divergence(hidden: Tensor, head: Head, teacher: TeacherStates | TopTokens) -> Tensor:
    """Mean KL(teacher ‖ student) over rows of states, in nats; differentiable in the states and the head's tensors.

    Args:
        hidden: [R, H], any float dtype.
        head: of the student; its weight has the dtype of `hidden`.
        teacher: R rows of its distribution.

    Returns:
        A scalar [], fp32 (float64 for float64 inputs).

    Raises:
        RequestError: for shapes that do not fit.
    """
    _check(hidden, head, teacher)
    found: Tensor = _Divergence.apply(hidden, head.weight, head.bias, head, teacher)  # type: ignore[no-untyped-call]
    return found


class _Divergence(torch.autograd.Function):
    """Value and gradient in one pass; the backward pass scales what is there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, teacher: TeacherStates | TopTokens
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        kl = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if of_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if of_weight else None
        d_bias = None if bias is None or not of_bias else torch.zeros_like(bias, dtype=wide)
        for first in range(0, len(hidden), ROWS):
            rows = slice(first, min(first + ROWS, len(hidden)))
            logits = head.logits(hidden[rows])
            kl += _into_slopes(logits, head, teacher.rows(rows))
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += logits.t() @ hidden[rows]
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=wide)
        mean = 1 / len(hidden)
        found = (d_hidden, None if d_weight is None else d_weight.to(weight.dtype), d_bias)
        ctx.mean = mean
        ctx.save_for_backward(*found)
        return kl * mean

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        factor = slopes[0] * ctx.mean
        found = [None if one is None else (one * factor).to(one.dtype) for one in ctx.saved_tensors]
        return (*found, None, None)


def _into_slopes(logits: Tensor, head: Head, teacher: TeacherStates | TopTokens) -> Tensor:
    """Sum of the divergences of some rows; their slopes take the place of the logits [r, V]."""
    expected = teacher.head.logits(teacher.states) if isinstance(teacher, TeacherStates) else None
    if not is_native(logits) or (expected is not None and expected.dtype != logits.dtype):
        return _by_torch(logits, head, teacher, expected)
    values = torch.empty(len(logits))
    scaling = head.scale, head.soft_cap or 0.0
    if isinstance(teacher, TeacherStates):
        assert expected is not None
        other = teacher.head.scale, teacher.head.soft_cap or 0.0
        _C.divergence(array(logits), array(expected), array(values), *scaling, *other)
    else:
        tokens, log_probs = teacher.tokens.contiguous(), teacher.log_probs.float().contiguous()
        rest = teacher.rest.float().contiguous()
        _C.named_divergence(array(logits), array(tokens), array(log_probs), array(rest), array(values), *scaling)
    return values.sum()


def _by_torch(logits: Tensor, head: Head, teacher: TeacherStates | TopTokens, expected: Tensor | None) -> Tensor:
    """The same by torch; `expected` are the teacher's logits [r, V]."""
    kl = torch.zeros((), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32, device=logits.device)
    at_once = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE_ELSEWHERE) // logits.shape[1])
    for at in range(0, len(logits), at_once):
        few = slice(at, at + at_once)
        z = head.ended(logits[few])
        if isinstance(teacher, TeacherStates):
            assert expected is not None
            value, slope = _all_tokens(z, teacher.head.ended(expected[few]))
        else:
            value, slope = _named_tokens(z, teacher.rows(few))
        kl += value
        if head.soft_cap is not None:  # the derivative of tanh, from its value
            slope *= (z / head.soft_cap).square_().neg_().add_(1)
        logits[few] = slope.mul_(head.scale) if head.scale != 1.0 else slope
    return kl


def _all_tokens(z: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the rows' divergences, and its slope [r, V]; both logits [r, V] are fp32 or wider."""
    q, p = z.softmax(-1), teacher.softmax(-1)
    # The largest probability is 1 / Σ exp(z − max z), which gives log Σ exp z without another pass of exponentials.
    log_sum = z.amax(-1) - q.amax(-1).log()
    teacher_log_sum = teacher.amax(-1) - p.amax(-1).log()
    value = torch.dot(p.view(-1), (teacher - z).view(-1)) + (log_sum - teacher_log_sum).sum()
    return value, q.sub_(p)


def _named_tokens(z: Tensor, teacher: TopTokens) -> tuple[Tensor, Tensor]:
    """The same for K named tokens of each row."""
    tokens, log_probs, rest = teacher.tokens, teacher.log_probs, teacher.rest
    q = z.softmax(-1)
    log_sum = z.amax(-1) - q.amax(-1).log()
    log_p = log_probs.to(z.dtype)
    p, rest = log_p.exp(), rest.to(z.dtype)
    named = q.gather(1, tokens)
    others = q.scatter_(1, tokens, 0.0).sum(-1)
    tiny = torch.finfo(z.dtype).tiny
    value = (p * (log_p - z.gather(1, tokens) + log_sum[:, None])).sum()
    value = value + torch.where(rest > 0, rest * (rest.clamp_min(tiny).log() - others.clamp_min(tiny).log()), 0.0).sum()
    q *= torch.where(others > 0, 1 - rest / others.clamp_min(tiny), 0.0)[:, None]
    return value, q.scatter_(1, tokens, named - p)


def _check(hidden: Tensor, head: Head, teacher: TeacherStates | TopTokens) -> None:
    vocabulary, width = head.weight.shape
    if hidden.dim() != 2 or hidden.shape[1] != width or not len(hidden):
        raise RequestError(f"hidden: expected [R, {width}], got {list(hidden.shape)}")
    if hidden.dtype != head.weight.dtype:
        raise RequestError(f"hidden: expected {head.weight.dtype} as the weight, got {hidden.dtype}")
    if isinstance(teacher, TeacherStates):
        if (
            teacher.states.shape != (len(hidden), teacher.head.weight.shape[1])
            or len(teacher.head.weight) != vocabulary
        ):
            raise RequestError(
                f"teacher: expected {len(hidden)} rows of states and a head of {vocabulary} tokens, got "
                f"{list(teacher.states.shape)} and {len(teacher.head.weight)}"
            )
    elif teacher.tokens.shape != teacher.log_probs.shape or teacher.tokens.shape[0] != len(hidden):
        raise RequestError(
            f"teacher: expected tokens and log_probs [{len(hidden)}, K], got {list(teacher.tokens.shape)} and "
            f"{list(teacher.log_probs.shape)}"
        )
    elif teacher.rest.shape != (len(hidden),):
        raise RequestError(f"teacher: expected rest [{len(hidden)}], got {list(teacher.rest.shape)}")
