"""Losses of rows from tiles of their logits: a running maximum, sum of exponentials and target logit of each row.

The sums are those of `linear_cross_entropy.py`. The core adds a tile in one pass while it is in the processor's cache;
torch's operations do so anywhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.kernels.memory import array

_LOWEST = torch.finfo(torch.float32).min


class CoreSums:
    """Running sums of some rows, by the core: fp32 [R, 3] of each model, (maximum, sum, target logit or gap)."""

    def __init__(self, targets: Tensor, scale: float, soft_cap: float | None, *, with_teacher: bool) -> None:
        self.targets, self.scale, self.soft_cap = targets, scale, soft_cap
        self.student = torch.zeros(len(targets), 3, device=targets.device)
        self.student[:, 0] = _LOWEST
        self.teacher = self.student.clone() if with_teacher else None

    def add(self, logits: Tensor, teacher_logits: Tensor | None, first_word: int) -> None:
        """Add a tile of logits [R, v], and the teacher's."""
        _C.running_loss(
            array(logits),
            array(self.targets),
            first_word,
            array(self.student),
            self.scale,
            self.soft_cap or 0.0,
            None if teacher_logits is None else array(teacher_logits),
            None if self.teacher is None else array(self.teacher),
        )

    def nll(self) -> Tensor:
        """Of each row, [R]."""
        return _log_sum(self.student) - self.student[:, 2]

    def kl(self) -> Tensor:
        """Of each row, [R]."""
        assert self.teacher is not None
        return self.teacher[:, 2] / self.teacher[:, 1] - _log_sum(self.teacher) + _log_sum(self.student)


class TorchSums(CoreSums):
    """The same by torch's operations, on any device and in any dtype; sums of float64 logits are float64."""

    def add(self, logits: Tensor, teacher_logits: Tensor | None, first_word: int) -> None:
        """Add a tile of logits [R, v], and the teacher's."""
        z = self._finished(logits)
        self.student = self.student.to(z.dtype)
        place = self.targets - first_word
        inside = (place >= 0) & (place < z.shape[1])
        at_target = z.gather(1, place.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
        self.student[:, 2] += torch.where(inside, at_target, 0.0)
        self._grow(self.student, z)
        if self.teacher is not None and teacher_logits is not None:
            expected = self._finished(teacher_logits)
            self.teacher = self.teacher.to(z.dtype)
            shares, shrunk = self._grow(self.teacher, expected)
            self.teacher[:, 2] = self.teacher[:, 2] * shrunk + (shares * (expected - z)).sum(1)

    def _finished(self, logits: Tensor) -> Tensor:
        z = self.scale * logits.to(wide(logits))
        return z if self.soft_cap is None else self.soft_cap * torch.tanh(z / self.soft_cap)

    @staticmethod
    def _grow(running: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Add exponentials of logits to maxima and sums; those of the new maxima, and what old ones shrink by."""
        top = torch.maximum(running[:, 0], z.amax(1))
        shares, shrunk = (z - top[:, None]).exp(), (running[:, 0] - top).exp()
        running[:, 1] = running[:, 1] * shrunk + shares.sum(1)
        running[:, 0] = top
        return shares, shrunk


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of the sums of logits [...]."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _log_sum(running: Tensor) -> Tensor:
    return running[:, 0] + running[:, 1].log()
