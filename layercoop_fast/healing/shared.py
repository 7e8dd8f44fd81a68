"""Parameters of a student: one copy in memory of those that its teacher has too, and their dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Elements by which candidates are found; those of equal beginnings are compared as a whole.
_SAMPLE = 32


def share_tensors(student: nn.Module, teacher: nn.Module) -> int:
    """Replace each frozen parameter of the student that equals one of the teacher's by that very one.

    Returns the bytes that are shared. Parameters that require gradients stay the student's own.
    """
    known: dict[object, list[nn.Parameter]] = {}
    for parameter in teacher.parameters():
        known.setdefault(_mark(parameter), []).append(parameter)
    shared: dict[int, int] = {}
    for module in student.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                continue
            for candidate in known.get(_mark(parameter), ()):
                if torch.equal(candidate, parameter):
                    setattr(module, name, candidate)
                    shared[id(candidate)] = candidate.numel() * candidate.element_size()
                    break
    return sum(shared.values())


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model's parameters a dtype. Buffers keep theirs: rotary frequencies are fp32 in every checkpoint."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _mark(tensor: Tensor) -> object:
    """What equal tensors [...] have in common, and few others."""
    sample = tensor.detach().reshape(-1)[:_SAMPLE].double().tolist()
    return tensor.dtype, tensor.device, tuple(tensor.shape), *sample
