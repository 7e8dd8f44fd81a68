"""The gains of a norm that has the last word of its unit, and the regression that refits them.

Where a unit ends in a norm (Gemma 2 and 3, OLMo 2), no linear map's output reaches the stream as it is, but the norm's
does: n ⊙ s, with n of unit mean square and s the gains. For y_t = n_t ⊙ s, what is missing behind it e_t and weights
w_t ≥ 0 of tokens t, the change of gain c relative to itself is a ridge regression with one input,

    β_c = Σ_t w_t y_tc e_tc / ((1 + λ) Σ_t w_t y_tc²)

so that a strength λ of ∞ leaves the gain as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError
from layercoop_fast.repair.ridge import check_finite, check_strength


@dataclass
class GainEquations:
    """Sums over tokens: `squares` Σ w y² and `cross` Σ w y e, float64 [H]; `tokens`, how many there were."""

    squares: Tensor
    cross: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, width: int, *, device: torch.device | str = "cpu") -> GainEquations:
        """No tokens yet."""
        return cls(*torch.zeros(2, width, dtype=torch.float64, device=device))

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor) -> None:
        """Add some tokens: what the norm returns and what is missing, [N, H] both, weights [N] ≥ 0 (any float dtype).

        Raises `RequestError` where they do not fit each other or are not finite.
        """
        if inputs.shape != missing.shape or inputs.shape != (len(weights), len(self.cross)):
            raise RequestError(
                f"equations of {len(self.cross)} gains do not take tokens of shapes {list(inputs.shape)}, "
                f"{list(missing.shape)} and {list(weights.shape)}"
            )
        y, e = inputs.double(), missing.double()
        weighted = y * weights.double()[:, None]
        check_finite(weighted, e)
        self.squares += (weighted * y).sum(0)
        self.cross += (weighted * e).sum(0)
        self.tokens += len(y)

    def __add__(self, other: GainEquations) -> GainEquations:
        return GainEquations(self.squares + other.squares, self.cross + other.cross, self.tokens + other.tokens)

    def __sub__(self, other: GainEquations) -> GainEquations:
        """Without a share that was added before."""
        return GainEquations(self.squares - other.squares, self.cross - other.cross, self.tokens - other.tokens)

    def change(self, strength: float) -> Tensor:
        """β at a strength > 0: float64 [H]; 0 for a gain that lets nothing through."""
        check_strength(strength)
        passes = self.squares > 0
        return torch.where(passes, self.cross / ((1 + strength) * self.squares.where(passes, torch.ones(()))), 0.0)


@dataclass(frozen=True)
class GainSite:
    """A norm whose output is added to the stream, or is the stream (the last norm of GPT-1's blocks).

    Attributes:
        unit: the unit it belongs to.
        name: its dotted path in the model.
        module: the norm; its gains are its `weight` [H] plus `offset`.
        offset: 0, or 1 where the weight is stored as its distance from 1 (Gemma).
    """

    unit: int
    name: str
    module: nn.Module
    offset: float
    bias: None = None  # nothing to refit: that of the norm, if it has one, stays as it is

    def equations(self) -> GainEquations:
        """Nothing summed yet, where the norm is."""
        weight = self.module.get_parameter("weight")
        return GainEquations.empty(len(weight), device=weight.device)

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """What the regression works with, of what the module is handed and returns."""
        bias = getattr(self.module, "bias", None)
        return returned.clone() if bias is None else returned - bias  # a clone, lest the block goes on in place

    def changed(self, change: Tensor) -> tuple[Tensor, None]:
        """The new weight, in its dtype, for a change β."""
        weight = self.module.get_parameter("weight").detach()
        return (weight.double() + change * (weight.double() + self.offset)).to(weight.dtype), None


def gains_of(module: nn.Module, width: int) -> float | None:
    """The offset of a module's gains (see `GainSite`), by trying; None where it is no norm of `width` numbers."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != (width,) or list(module.children()):
        return None
    if weight.is_meta or not (bias is None or (isinstance(bias, nn.Parameter) and bias.shape == (width,))):
        return None
    kept = weight.detach().clone()
    handed = torch.linspace(-1, 2, width, device=weight.device).to(weight.dtype)[None, None]
    try:
        for offset in (0.0, 1.0):
            weight.data.fill_(-offset)
            left = module(handed)
            if torch.equal(left, torch.zeros_like(left) if bias is None else bias.expand_as(left)):
                return offset
    except Exception:  # it takes something else: any module may stand here, and say so in any way
        return None
    finally:
        weight.data.copy_(kept)
    return None
