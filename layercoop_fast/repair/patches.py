"""Weights that stand ready to take the place of a model's own, and do so for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from layercoop_fast.repair.sites import Site


@dataclass(frozen=True, eq=False)
class Patch:
    """New parameters of a site: `weight` as its module stores it, and `bias` [H] where it has one, in its dtype."""

    site: Site
    weight: Tensor
    bias: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in the model's state dict."""
        named = {f"{self.site.name}.weight": self.weight}
        return named if self.bias is None else {**named, f"{self.site.name}.bias": self.bias}


def patch(site: Site, change: Tensor) -> Patch:
    """The site's parameters with a change added: float64 [H, n], with a last column for the bias where it has one."""
    bias = site.bias
    width = site.weight.shape[1]
    weight = (site.weight.double() + change[:, :width]).to(site.weight.dtype)
    if isinstance(site.module, Conv1D):
        weight = weight.t()
    shifted = None if bias is None else (bias.double() + change[:, width]).to(bias.dtype)
    return Patch(site, weight.contiguous(), shifted)


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[None]:
    """Within the block the model's parameters are those of the patches.

    Their values are exchanged in place, since fast blocks see the same memory.
    """
    kept = [(one, one.site.module.weight.detach().clone(), one.site.bias) for one in patches]
    kept = [(one, weight, None if bias is None else bias.clone()) for one, weight, bias in kept]
    try:
        for one in patches:
            _write(one.site, one.weight, one.bias)
        yield
    finally:
        for one, weight, bias in kept:
            _write(one.site, weight, bias)


def _write(site: Site, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        site.module.weight.data.copy_(weight)
        if bias is not None:
            site.module.bias.data.copy_(bias)
