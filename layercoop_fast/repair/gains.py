"""The gains of a norm at the end of its unit, and the regression that refits them.

Where a unit ends in a norm (Gemma 2 and 3, OLMo 2), the output that is added to the residual stream is not a linear
map's but the norm's: n ⊙ s, with n of unit mean square and gains s. With y_t = n_t ⊙ s, the missing part e_t and
weights w_t ≥ 0 of tokens t, the relative change of gain c is a ridge regression with one input,

    β_c = Σ_t w_t y_tc e_tc / ((1 + λ) Σ_t w_t y_tc²)

so that an infinite strength λ leaves the gain unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError
from layercoop_fast.repair.ridge import check_finite, check_strength


@dataclass
class GainEquations:
    """Sums over tokens.

    Attributes:
        squares: float64 [H], Σ w y².
        cross: float64 [G·H], Σ w y e, H for each of G norms.
        tokens: number of tokens.
    """

    squares: Tensor
    cross: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, width: int, norms: int = 1, *, device: torch.device | str = "cpu") -> GainEquations:
        """Sums over no tokens, for one refitted norm or several of the same outputs."""
        squares, cross = (torch.zeros(count * width, dtype=torch.float64, device=device) for count in (1, norms))
        return cls(squares, cross)

    def add(self, inputs: Tensor, missing: Tensor, weights: Tensor) -> None:
        """Add N tokens: outputs of the norm [N, H], missing parts [N, G·H], weights [N] ≥ 0 (any float dtype).

        Raises `RequestError` where shapes do not fit each other or values are not finite.
        """
        width = len(self.squares)
        if inputs.shape != (len(weights), width) or missing.shape != (len(weights), len(self.cross)):
            raise RequestError(
                f"tokens of shapes {list(inputs.shape)}, {list(missing.shape)} and {list(weights.shape)} do not fit "
                f"equations of {len(self.squares)} gains"
            )
        y, e = inputs.double(), missing.double()
        weighted = y * weights.double()[:, None]
        check_finite(weighted, e)
        self.squares += (weighted * y).sum(0)
        self.cross += (weighted[:, None] * e.view(len(e), -1, width)).sum(0).flatten()
        self.tokens += len(y)

    def __add__(self, other: GainEquations) -> GainEquations:
        return GainEquations(self.squares + other.squares, self.cross + other.cross, self.tokens + other.tokens)

    def __sub__(self, other: GainEquations) -> GainEquations:
        """Without tokens that were added before."""
        return GainEquations(self.squares - other.squares, self.cross - other.cross, self.tokens - other.tokens)

    def change(self, strength: float) -> Tensor:
        """β at a strength > 0: float64 [G·H]; 0 for a gain whose outputs are all zero."""
        check_strength(strength)
        squares = self.squares.repeat(len(self.cross) // len(self.squares))
        passes = squares > 0
        return torch.where(passes, self.cross / ((1 + strength) * squares.where(passes, torch.ones(()))), 0.0)

    def again(self, like: Tensor, strength: float) -> Tensor:
        """β at a strength, float64 [G·H]: gains have one form, whatever other sums gave."""
        return self.change(strength)


@dataclass(frozen=True)
class GainSite:
    """A norm whose output is added to the residual stream, or is the stream (the last norm of GPT-1's blocks).

    The bias of the norm, if any, is not refitted.

    Attributes:
        unit: that it belongs to.
        name: its dotted path in the model.
        module: the norm; its gains are its `weight` [H] plus `offset`.
        offset: 0, or 1 where the weight is stored as the gain minus 1 (Gemma).
    """

    unit: int
    name: str
    module: nn.Module
    offset: float

    def equations(self, maps: int = 1, products: torch.dtype = torch.float64) -> GainEquations:
        """Sums over no tokens, on the norm's device, for one refitted norm or several of the same outputs.

        Their few products are float64 whatever `products` says.
        """
        weight = self.module.get_parameter("weight")
        return GainEquations.empty(len(weight), maps, device=weight.device)

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """The regression's inputs: the norm's output [..., H] without its bias."""
        bias = getattr(self.module, "bias", None)
        return returned.clone() if bias is None else returned - bias  # a clone: the block may change it in place

    def parameters(self) -> dict[str, Tensor]:
        """The weight [H] by name."""
        return {f"{self.name}.weight": self.module.get_parameter("weight")}

    def changed(self, change: Tensor) -> dict[str, Tensor]:
        """The new weight [H], in its dtype, for a relative change β, float64 [H]."""
        weight = self.module.get_parameter("weight").detach()
        return {f"{self.name}.weight": (weight.double() + change * (weight.double() + self.offset)).to(weight.dtype)}


def gains_of(module: nn.Module, width: int) -> float | None:
    """The offset of a module's gains (see `GainSite`), by trying; None where it is not a norm of `width` numbers."""
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
    except Exception:  # a module with other arguments may raise any exception
        return None
    finally:
        weight.data.copy_(kept)
    return None
