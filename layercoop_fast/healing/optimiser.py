"""AdamW on fp32 values of parameters that are computed with in another dtype.

The model's own parameters are what products read, in bf16 where the processor multiplies fast in it. Their fp32 values
are updated, and rounded into them once a step: autocast would round every weight in every forward pass. Watching,
choosing and writing then see the very numbers that a checkpoint in that dtype holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

# Parameters are updated in groups of about this many bytes of fp32, so that their fp32 gradients are few at a time.
_GROUP_BYTES = 64 * 2**20
_BETAS = (0.9, 0.95)
_LARGEST_NORM = 1.0
_WARM_UP = 0.03
_LEAST_SHARE = 0.05


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
        self.masters = {
            name: parameter.detach() if parameter.dtype == torch.float32 else parameter.detach().float()
            for name, parameter in self.parameters.items()
        }
        self._groups: list[tuple[list[str], torch.optim.AdamW]] = []
        for names in self._grouped():
            own = [self.masters[name] for name in names]
            self._groups.append((names, torch.optim.AdamW(own, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)))
        # fp32 gradients of one group at a time: fresh memory for them would cost as much as the update does.
        largest = max(sum(self.masters[name].numel() for name in names) for names, _ in self._groups)
        self._space = next(iter(self.masters.values())).new_empty(largest)

    def _grouped(self) -> Iterator[list[str]]:
        names: list[str] = []
        size = 0
        for name, master in self.masters.items():
            names.append(name)
            size += 4 * master.numel()
            if size >= _GROUP_BYTES:
                yield names
                names, size = [], 0
        if names:
            yield names

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
        gradients = self.gradients
        norm = float(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).norm())
        if not math.isfinite(norm):
            return False
        factor = min(1.0, _LARGEST_NORM / (norm + 1e-6))
        for names, optimiser in self._groups:
            self._widen(names, factor)
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
            for name in names:
                self.masters[name].grad = None
                if self.parameters[name].dtype != torch.float32:
                    self.parameters[name].copy_(self.masters[name])
        return True

    def _widen(self, names: list[str], factor: float) -> None:
        """Hand the gradients of a group to its fp32 values, times a factor, in fp32."""
        at = 0
        for name in names:
            gradient = self.parameters[name].grad
            assert gradient is not None
            wide = self._space[at : at + gradient.numel()].view_as(gradient)
            at += gradient.numel()
            self.masters[name].grad = wide.copy_(gradient).mul_(factor)
            self.parameters[name].grad = None

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name: values and moments, tensors [...], and the number of steps, []."""
        found = {}
        for names, optimiser in self._groups:
            for name in names:
                master = self.masters[name]
                state = optimiser.state.get(master) or {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(master),
                    "exp_avg_sq": torch.zeros_like(master),
                }
                found[f"value/{name}"] = master
                found |= {f"{part}/{name}": state[part] for part in ("step", "exp_avg", "exp_avg_sq")}
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned in a stopped run, tensors [...] by name."""
        for names, optimiser in self._groups:
            for name in names:
                master = self.masters[name]
                master.copy_(tensors[f"value/{name}"])
                if self.parameters[name].dtype != torch.float32:
                    self.parameters[name].copy_(master)
                optimiser.state[master] = {
                    part: tensors[f"{part}/{name}"].clone().to(master.device)
                    for part in ("step", "exp_avg", "exp_avg_sq")
                }
