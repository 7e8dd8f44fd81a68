"""AdamW on fp32 values of parameters that are computed with in another dtype.

The model's own parameters are what products read, in bf16 where the processor multiplies fast in it. Their fp32 values
are updated, and rounded into them once a step: autocast would round every weight in every forward pass. Watching,
choosing and writing then see the very numbers that a checkpoint in that dtype holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from layercoop_fast.kernels.adamw import Moments, adamw_, norm_of_all

_BETAS = (0.9, 0.95)
_LARGEST_NORM = 1.0
_WARM_UP = 0.03
_LEAST_SHARE = 0.05
# A state holds the number of steps in fp32, which counts no further.
_MOST_STEPS = 2**24


def learning_rate(largest: float, progress: float) -> float:
    """Linear warm-up over 3 % of a run, then half a cosine down to 5 % of the largest; `progress` is from 0 to 1."""
    if progress < _WARM_UP:
        return largest * (0.1 + 0.9 * progress / _WARM_UP)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP))))
    return largest * (_LEAST_SHARE + (1 - _LEAST_SHARE) * cosine)


class MasterAdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) without decay, with gradients clipped to a norm of 1.

    Args:
        parameters: by name, tensors [...] that require gradients.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._moments = {name: Moments.of(parameter) for name, parameter in self.parameters.items()}

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of the model's parameters, tensors [...]; zeros where there is none."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    @torch.no_grad()
    def step(self, rate: float) -> bool:
        """Update the parameters and forget the gradients; where these are not finite, change nothing: False."""
        norm = norm_of_all(self.gradients)
        if not math.isfinite(norm):
            return False
        factor = min(1.0, _LARGEST_NORM / (norm + 1e-6))
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None
            adamw_(parameter, parameter.grad, self._moments[name], rate, factor=factor, betas=_BETAS)
            parameter.grad = None
        return True

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name: values and moments, tensors [...], and the number of steps, []."""
        found: dict[str, Tensor] = {}
        for name, moments in self._moments.items():
            found |= {
                f"value/{name}": moments.value,
                f"step/{name}": torch.tensor(float(moments.steps)),
                f"exp_avg/{name}": moments.first,
                f"exp_avg_sq/{name}": moments.second,
            }
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned in a stopped run, tensors [...] by name.

        Raises `ValueError` for a number of steps that no run has done.
        """
        for name, moments in self._moments.items():
            moments.value.copy_(tensors[f"value/{name}"])
            moments.first.copy_(tensors[f"exp_avg/{name}"])
            moments.second.copy_(tensors[f"exp_avg_sq/{name}"])
            steps = float(tensors[f"step/{name}"])
            if not (0 <= steps <= _MOST_STEPS and steps.is_integer()):
                raise ValueError(f"step/{name}: {steps} is not a number of steps")
            moments.steps = int(steps)
            self.parameters[name].copy_(moments.value)
