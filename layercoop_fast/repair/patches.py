"""New parameters of a model, which can be applied to it for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from layercoop_fast.repair.gains import GainSite
from layercoop_fast.repair.sites import Site


@dataclass(frozen=True, eq=False)
class Patch:
    """New parameters of a site, in its dtype.

    Attributes:
        site: the module they belong to.
        weight: as the module stores it, [H, n] or [n, H], or [H] of a norm.
        bias: [H], where it is refitted.
    """

    site: Site | GainSite
    weight: Tensor
    bias: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """The parameters, of the shapes above, by their names in the model's state dict, such as `[H, n]`."""
        named = {f"{self.site.name}.weight": self.weight}
        return named if self.bias is None else {**named, f"{self.site.name}.bias": self.bias}


def patch(site: Site | GainSite, change: Tensor) -> Patch:
    """The site's parameters with a change that its equations gave: float64 [H, n], or [H] of a norm."""
    return Patch(site, *site.changed(change))


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[None]:
    """Within the `with` block the model has the parameters of the patches.

    Values are written in place, since fast blocks share the memory of the parameters.
    """
    kept = [(one, one.site.module.get_parameter("weight").detach().clone(), one.site.bias) for one in patches]
    kept = [(one, weight, None if bias is None else bias.clone()) for one, weight, bias in kept]
    try:
        for one in patches:
            _write(one.site, one.weight, one.bias)
        yield
    finally:
        for one, weight, bias in kept:
            _write(one.site, weight, bias)


def _write(site: Site | GainSite, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        site.module.get_parameter("weight").data.copy_(weight)
        if bias is not None:
            site.module.get_parameter("bias").data.copy_(bias)
