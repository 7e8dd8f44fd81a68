"""Ridge regression from streamed normal equations, towards no change.

For inputs u_t [n], what is missing behind them e_t [H] and weights w_t ≥ 0 of tokens t, the change of a linear map is

    B = argmin  Σ_t w_t |e_t − B u_t|²  +  s · g · |B|²,     g = trace(G) / n,  G = Σ_t w_t u_t u_tᵀ

so that s = ∞ leaves the map as it is. s is relative to the mean square of an input: one grid of strengths serves every
model and every number of tokens. All that is kept of the tokens is G [n, n] and C = Σ_t w_t u_t e_tᵀ [n, H], in
float64; both add up, so a part of the text is left out by subtracting its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError


class Equations(Protocol):
    """Sums over tokens that a part of a unit is refitted by: of a linear map below, of a norm's gains in `gains.py`."""

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor) -> None:
        """Add some tokens."""

    def __add__(self, other: Any) -> Any: ...

    def __sub__(self, other: Any) -> Any: ...

    def change(self, strength: float) -> Tensor:
        """How the part changes at a strength of the ridge."""


def check_finite(*streams: Tensor) -> None:
    """Raise `RequestError` where a number of what a repair is fitted to is none."""
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
        gram: float64 [n, n] (n + 1 where there is an intercept, the last input then being 1).
        cross: float64 [n, H].
        intercept: whether the map has a bias to be refitted too; that is not drawn towards no change.
        tokens: how many there were.
    """

    gram: Tensor
    cross: Tensor
    intercept: bool
    tokens: int = 0

    @classmethod
    def empty(
        cls, inputs: int, outputs: int, *, intercept: bool = False, device: torch.device | str = "cpu"
    ) -> NormalEquations:
        """No tokens yet, of a map from `inputs` to `outputs` numbers."""
        n = inputs + intercept
        gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        return cls(gram, torch.zeros(n, outputs, dtype=torch.float64, device=device), intercept)

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor | None = None) -> None:
        """Add some tokens: inputs [N, n], missing [N, H], weights [N] ≥ 0 (any float dtype), all finite.

        Raises `RequestError` where they do not fit each other or are not finite.
        """
        width = len(self.gram) - self.intercept
        if inputs.shape != (len(missing), width) or missing.shape != (len(inputs), self.cross.shape[1]):
            raise RequestError(
                f"normal equations of {width} inputs and {self.cross.shape[1]} outputs do not take tokens of shapes "
                f"{list(inputs.shape)} and {list(missing.shape)}"
            )
        u, e = inputs.double(), missing.double()
        if self.intercept:
            u = torch.cat([u, u.new_ones(len(u), 1)], dim=1)
        weighted = u if weights is None else u * weights.double()[:, None]
        check_finite(weighted, e)
        self.gram.addmm_(weighted.t(), u)
        self.cross.addmm_(weighted.t(), e)
        self.tokens += len(u)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.gram + other.gram, self.cross + other.cross, self.intercept, self.tokens + other.tokens
        )

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        """Without a share that was added before."""
        return NormalEquations(
            self.gram - other.gram, self.cross - other.cross, self.intercept, self.tokens - other.tokens
        )

    def change(self, strength: float) -> Tensor:
        """The change B of the map at a strength > 0: float64 [H, n], the bias's in a last column of its own.

        Raises `RequestError` for a strength that is not positive, where no token says anything, or where float64 does
        not carry the sums.
        """
        check_strength(strength)
        width = len(self.gram) - self.intercept
        scale = float(self.gram.diagonal()[:width].mean())
        if not scale > 0:
            raise RequestError("a repair needs text on which the inputs of the repaired map are not all zero")
        ridged = self.gram.clone()
        ridged.diagonal()[:width] += strength * scale
        # A hair on the intercept too: it makes the matrix positive definite whatever the inputs are.
        ridged.diagonal()[width:] += 1e-12 * scale
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if failed:
            raise RequestError("a repair needs inputs of the repaired map whose sums of products float64 can carry")
        return torch.cholesky_solve(self.cross, factor).t()
