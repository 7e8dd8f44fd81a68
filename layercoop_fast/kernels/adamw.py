"""A step of AdamW for one parameter, whose values are fp32 and whose weights are what a model computes with.

    m ← β₁ m + (1 − β₁) g,      v ← β₂ v + (1 − β₂) g²,      value ← value − rate · m̂ / (√v̂ + ε),      weight ← value

with g = factor · gradient, m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) in step t, without decay. On fp32 and bf16 in the
memory of the CPU the core does it in one pass over memory, elsewhere torch does.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from layercoop_fast import _C
from layercoop_fast.kernels.memory import array, is_native, require

EPS = 1e-8


@dataclass(eq=False)
class Moments:
    """What AdamW keeps of one parameter.

    Attributes:
        value: fp32 (float64 of float64 weights) [...], contiguous; the weight's own memory where it is like that.
        first: m, like the value.
        second: v, like the value.
        steps: t, steps done.
    """

    value: Tensor
    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def of(cls, weight: Tensor) -> Moments:
        """Those of a weight [...] before the first step."""
        weight = weight.detach()
        value = (weight if weight.dtype in (torch.float32, torch.float64) else weight.float()).contiguous()
        return cls(value, torch.zeros_like(value), torch.zeros_like(value))


@torch.no_grad()
def adamw_(
    weight: Tensor, gradient: Tensor, moments: Moments, rate: float, *, factor: float, betas: tuple[float, float]
) -> None:
    """Change a weight [...] and its moments in place.

    Args:
        weight: that is computed with.
        gradient: [...], of the weight's shape and dtype.
        moments: of the weight.
        rate: learning rate.
        factor: of the gradient.
        betas: β₁ and β₂, at least 0 and below 1.

    Raises:
        RequestError: for a gradient of another shape or dtype.
    """
    gradient = gradient.contiguous()
    require(gradient, "gradient", tuple(weight.shape), weight)
    moments.steps += 1
    value = moments.value
    is_value = weight.data_ptr() == value.data_ptr()
    if is_native(weight):
        at_once = weight.is_contiguous() and not is_value
        _C.adamw(
            array(gradient.view(-1)),
            array(value.view(-1)),
            array(moments.first.view(-1)),
            array(moments.second.view(-1)),
            rate,
            *betas,
            EPS,
            moments.steps,
            factor,
            array(weight.view(-1)) if at_once else None,
        )
        if not (is_value or at_once):
            weight.copy_(value)
        return
    _by_torch(value, gradient, moments, rate, factor, betas)
    if not is_value:
        weight.copy_(value)


def _by_torch(
    value: Tensor, gradient: Tensor, moments: Moments, rate: float, factor: float, betas: tuple[float, float]
) -> None:
    """The same step by torch, of the values alone, from a gradient [...]."""
    adamw(
        [value],
        [gradient.to(value.dtype) * factor],
        [moments.first],
        [moments.second],
        [],
        [torch.tensor(float(moments.steps - 1), device=value.device)],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=rate,
        weight_decay=0.0,
        eps=EPS,
        maximize=False,
    )


@torch.no_grad()
def norm_of_all(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of all numbers of some tensors [...]; infinity or NaN where one of them is."""
    square = 0.0
    others = []
    for tensor in tensors:
        if is_native(tensor) and tensor.is_contiguous():
            square += _C.sum_of_squares(array(tensor.view(-1)))
        else:
            others.append(torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)))
    if others:
        square += float(torch.stack(others).square().sum())
    return math.sqrt(square)
