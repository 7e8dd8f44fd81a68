"""Training an ensemble of residual networks together, as one wide network with hand-written gradients.

Network e of E, in the coordinates of training (inputs and targets centred and scaled, see `fit.Coordinates`):

    f_e(x) = c_e + ℓ_e · x + v_e · CELU(W_e x + b_e)

Every network sees every row, weighted by how often its bootstrap sample holds it. So the E hidden layers are one
product with an [E·H, n] matrix instead of E small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-8


@dataclass
class Parameters:
    """The parameters of E networks of H hidden units over n inputs, float32: views of one flat buffer.

    Attributes:
        flat: the buffer.
        hidden_weight: W, [E·H, n].
        hidden_bias: b, [E·H].
        output_weight: v, [E, H].
        linear: ℓ, [E, n].
        constant: c, [E].
    """

    flat: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    linear: Tensor
    constant: Tensor

    @classmethod
    def zeros(cls, ensemble: int, hidden: int, n: int) -> Parameters:
        """Parameters that are all 0."""
        shapes = [(ensemble * hidden, n), (ensemble * hidden,), (ensemble, hidden), (ensemble, n), (ensemble,)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        flat = torch.zeros(sum(sizes))
        return cls(flat, *(part.view(shape) for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)))

    @classmethod
    def fresh(cls, linear: Tensor, constant: Tensor, hidden: int, generator: torch.Generator) -> Parameters:
        """Networks that equal c [E] + ℓ [E, n] · x: v = 0, and W, b uniform in ±√(3/n): W x has unit variance."""
        ensemble, n = linear.shape
        made = cls.zeros(ensemble, hidden, n)
        bound = (3 / n) ** 0.5
        made.hidden_weight.uniform_(-bound, bound, generator=generator)
        made.hidden_bias.uniform_(-bound, bound, generator=generator)
        made.linear.copy_(linear)
        made.constant.copy_(constant)
        return made

    def clone(self) -> Parameters:
        """A copy with memory of its own."""
        ensemble, hidden = self.output_weight.shape
        copy = Parameters.zeros(ensemble, hidden, self.linear.shape[1])
        copy.flat.copy_(self.flat)
        return copy


@dataclass(frozen=True)
class Schedule:
    """AdamW, with a learning rate that falls as half a cosine from `lr` to 0 over `epochs`.

    Attributes:
        weight_decay: decoupled, on W, b and v alone; the linear part has its ridge penalty.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float

    def is_look(self, epoch: int) -> bool:
        """Whether the state after this epoch is judged and kept: about 20 of all epochs, and always the last."""
        return epoch % max(1, self.epochs // 20) == 0 or epoch == self.epochs


def forward(p: Parameters, x: Tensor, which: slice = slice(None)) -> Tensor:
    """Return f, `float32[B, E]`, of inputs `float32[B, n]`, or of the networks `which` only."""
    ensemble, hidden = p.output_weight.shape
    weight = p.hidden_weight.view(ensemble, hidden, -1)[which].flatten(0, 1)
    bias = p.hidden_bias.view(ensemble, hidden)[which].flatten()
    output = p.output_weight[which]
    units = F.celu_(torch.addmm(bias, x, weight.T)).view(len(x), *output.shape)
    return torch.addmm(p.constant[which], x, p.linear[which].T) + (units * output).sum(-1)


class Gradient:
    """The gradient of ½ Σ_e Σ_rows weight (f_e − target)² / B, with its arrays [rows, E·H] kept between steps.

    The page faults of new arrays in each step were seen to take as long as the products.
    """

    def __init__(self, p: Parameters, rows: int) -> None:
        ensemble, hidden = p.output_weight.shape
        self.p, self.into = p, Parameters.zeros(ensemble, hidden, p.linear.shape[1])
        self._units, self._slope, self._product = (torch.empty(rows, ensemble * hidden) for _ in range(3))

    def __call__(self, x: Tensor, targets: Tensor, weights: Tensor) -> Parameters:
        """The gradient at inputs `float32[B, n]`, `targets` and `weights` `float32[B, E]`, B ≤ rows.

        The next call overwrites the result. With s = exp(min(a, 0)), CELU(a) = max(a, 0) + s − 1 and CELU'(a) = s, so
        both need one exponential. It is computed as a power of 2, which takes torch a third of the time of exp.
        """
        p, into = self.p, self.into
        shape = len(x), *p.output_weight.shape
        units, slope, product = (buffer[: len(x)] for buffer in (self._units, self._slope, self._product))
        torch.addmm(p.hidden_bias, x, p.hidden_weight.T, out=units)
        torch.clamp(units, max=0, out=slope).mul_(math.log2(math.e)).exp2_()
        units.clamp_(min=0).add_(slope).sub_(1)
        torch.mul(units.view(shape), p.output_weight, out=product.view(shape))
        error = torch.addmm(p.constant, x, p.linear.T) + product.view(shape).sum(-1)
        error.sub_(targets).mul_(weights).div_(len(x))
        torch.bmm(error.T.unsqueeze(1), units.view(shape).transpose(0, 1), out=into.output_weight.unsqueeze(1))
        slope.view(shape).mul_(p.output_weight).mul_(error.unsqueeze(2))
        torch.mm(slope.T, x, out=into.hidden_weight)
        torch.sum(slope, 0, out=into.hidden_bias)
        torch.mm(error.T, x, out=into.linear)
        torch.sum(error, 0, out=into.constant)
        return into


def train(
    p: Parameters,
    x: Tensor,
    targets: Tensor,
    weights: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    after_epoch: Callable[[int], bool] | None = None,
) -> None:
    """Train in place on rows `x` `float32[M, n]` with `targets` and `weights` `float32[M, E]`.

    Each epoch shuffles the rows. Training ends with the schedule, or when `after_epoch(epoch)`, with epochs counted
    from 1, returns False. Source of the optimiser: Loshchilov and Hutter, 2019.
    """
    gradient = Gradient(p, min(len(x), schedule.batch_size))
    mean, square, scale = (torch.zeros_like(p.flat) for _ in range(3))
    decayed = p.hidden_weight.numel() + p.hidden_bias.numel() + p.output_weight.numel()
    steps_an_epoch = -(-len(x) // schedule.batch_size)
    total, step = schedule.epochs * steps_an_epoch, 0
    for epoch in range(1, schedule.epochs + 1):
        for rows in torch.split(torch.randperm(len(x), generator=generator), schedule.batch_size):
            grad = gradient(x[rows], targets[rows], weights[rows]).flat
            lr = schedule.lr * 0.5 * (1 + math.cos(math.pi * step / total))
            step += 1
            mean.lerp_(grad, 1 - _BETA1)
            square.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
            torch.div(square, 1 - _BETA2**step, out=scale).sqrt_().add_(_EPSILON)
            p.flat[:decayed].mul_(1 - lr * schedule.weight_decay)
            p.flat.addcdiv_(mean, scale, value=-lr / (1 - _BETA1**step))
        if after_epoch is not None and not after_epoch(epoch):
            return
