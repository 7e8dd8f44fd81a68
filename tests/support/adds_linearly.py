"""A block that a repair can make up for exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AddsLinearly(nn.Module):
    """A block that adds a linear map [H, n] of what a module of the block before it was handed."""

    def __init__(self, before: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.map = nn.Parameter(0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        self.seen: list[Tensor] = []
        before.register_forward_pre_hook(lambda _, args: self.seen.__setitem__(slice(None), [args[0]]))

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        if self.seen[0].shape[0] != hidden.shape[0]:  # tried by itself, on a batch that the block before did not see
            return hidden.clone()
        return hidden + self.seen[0] @ self.map.t()
