"""New parameters of a model, which can be applied to it for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Patched(Protocol):
    """A site, as far as its parameters go."""

    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters that a repair of the site changes, by their names in its state dict: [...] each."""

    def changed(self, change: Any) -> dict[str, Tensor]:
        """Their new values for a change that the site's equations gave, in the shapes and dtypes [...] they have."""


@dataclass(frozen=True, eq=False)
class Patch:
    """New parameters of a site.

    Attributes:
        site: whose parameters they are.
        values: by their names in the model's state dict, in its shapes and dtypes.
    """

    site: Patched
    values: dict[str, Tensor]


def patch(site: Patched, change: Any) -> Patch:
    """The site's parameters with a change that its equations gave."""
    return Patch(site, site.changed(change))


def present(site: Patched) -> Patch:
    """The site's parameters as they are: copies."""
    return Patch(site, {name: parameter.detach().clone() for name, parameter in site.parameters().items()})


def write(one: Patch) -> None:
    """Put a patch into its model, in place, since fast blocks share the memory of the parameters."""
    with torch.no_grad():
        for name, parameter in one.site.parameters().items():
            parameter.data.copy_(one.values[name])


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[None]:
    """Within the `with` block the model has the parameters of the patches."""
    own = [present(one.site) for one in patches]
    try:
        for one in patches:
            write(one)
        yield
    finally:
        for one in own:
            write(one)
