"""Ridge regression from streamed normal equations, with a penalty on the change of a linear map.

For inputs u_t [n], missing parts of the output e_t [H] and weights w_t ≥ 0 of tokens t, the change of a linear map is

    B = argmin  Σ_t w_t |e_t − B u_t|²  +  s · g · |B|²,     g = trace(G) / n,  G = Σ_t w_t u_t u_tᵀ

so that s = ∞ leaves the map unchanged. s is relative to the mean square of an input, so that one grid of strengths
serves every model and every number of tokens. Of the tokens only G [n, n] and C = Σ_t w_t u_t e_tᵀ [n, H] are kept, in
float64. Both are sums, so a part of the text is left out by subtracting its sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError


class Equations(Protocol):
    """Sums over tokens to refit a part of a unit: a linear map (below), gains of a norm, neurons of an MLP."""

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor) -> None:
        """Add N tokens: inputs [N, n], missing parts of the output [N, H], weights [N] ≥ 0."""

    def __add__(self, other: Any) -> Any: ...

    def __sub__(self, other: Any) -> Any: ...

    def change(self, strength: float) -> Any:
        """The change of the part at a strength of the ridge, as its site's `changed` takes it."""

    def again(self, like: Any, strength: float) -> Any:
        """A change of the form of `like`, which other sums gave, fitted to these sums."""


def check_finite(*streams: Tensor) -> None:
    """Raise `RequestError` where tensors of any shape [...] that a repair is fitted to are not finite."""
    if not all(torch.isfinite(stream).all() for stream in streams):
        raise RequestError("the stream of the model is not finite on the text that a repair is fitted to")


def check_strength(strength: float) -> None:
    """Raise `RequestError` for a strength that is not positive."""
    if not strength > 0:
        raise RequestError(f"the strength of a ridge must be above 0, not {strength}")


@dataclass
class NormalEquations:
    """Sums over tokens that a ridge regression needs.

    Attributes:
        gram: float64 [n, n] (n + 1 with an intercept, whose input is a last one of 1).
        cross: float64 [n, H].
        intercept: whether the map has a bias that is refitted too; its change is not penalised.
        tokens: number of tokens.
        products: dtype in which the products of the tokens of one `add` are summed; these sums are added in float64.
    """

    gram: Tensor
    cross: Tensor
    intercept: bool
    tokens: int = 0
    products: torch.dtype = torch.float64

    @classmethod
    def empty(
        cls,
        inputs: int,
        outputs: int,
        *,
        intercept: bool = False,
        products: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> NormalEquations:
        """Sums over no tokens, for a map from `inputs` to `outputs` numbers."""
        n = inputs + intercept
        gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        cross = torch.zeros(n, outputs, dtype=torch.float64, device=device)
        return cls(gram, cross, intercept, products=products)

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor | None = None) -> None:
        """Add N tokens: inputs [N, n], missing [N, H], weights [N] ≥ 0 (any float dtype).

        Raises `RequestError` where shapes do not fit each other or values are not finite.
        """
        width = len(self.gram) - self.intercept
        if inputs.shape != (len(missing), width) or missing.shape != (len(inputs), self.cross.shape[1]):
            raise RequestError(
                f"tokens of shapes {list(inputs.shape)} and {list(missing.shape)} do not fit normal equations of "
                f"{width} inputs and {self.cross.shape[1]} outputs"
            )
        u, e = inputs.to(self.products), missing.to(self.products)
        if self.intercept:
            u = torch.cat([u, u.new_ones(len(u), 1)], dim=1)
        weighted = u if weights is None else u * weights.to(self.products)[:, None]
        check_finite(weighted, e)
        self.gram += weighted.t() @ u
        self.cross += weighted.t() @ e
        self.tokens += len(u)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return replace(
            self, gram=self.gram + other.gram, cross=self.cross + other.cross, tokens=self.tokens + other.tokens
        )

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        """Without tokens that were added before."""
        return replace(
            self, gram=self.gram - other.gram, cross=self.cross - other.cross, tokens=self.tokens - other.tokens
        )

    def change(self, strength: float) -> Tensor:
        """The change B of the map at a strength > 0: float64 [H, n], with a last column for the bias where it has one.

        Raises `RequestError` for a strength that is not positive, where all inputs are zero, and where the sums exceed
        the precision of float64.
        """
        check_strength(strength)
        width = len(self.gram) - self.intercept
        scale = float(self.gram.diagonal()[:width].mean())
        if not scale > 0:
            raise RequestError("a repair needs text on which the inputs of the repaired map are not all zero")
        ridged = self.gram.clone()
        ridged.diagonal()[:width] += strength * scale
        # A tiny penalty on the intercept makes the matrix positive definite whatever the inputs are.
        ridged.diagonal()[width:] += 1e-12 * scale
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if failed:
            raise RequestError("the inputs of the repaired map are too large for sums of products in float64")
        return torch.cholesky_solve(self.cross, factor).t()

    def again(self, like: Tensor, strength: float) -> Tensor:
        """The change at a strength, float64 [H, n]: a map has one form, whatever other sums gave."""
        return self.change(strength)
