"""The scale on which a surrogate is fitted, and the way back to worths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats

SCALES = ("auto", "log", "identity")


@dataclass(frozen=True)
class Link:
    """From worths to the scale of the fit and back: logarithm and exponential, or the identity.

    A perplexity ratio is exp(NLL of the full model − NLL): a product of what each layer costs, mostly near 0. Its
    logarithm is the negative NLL up to a constant, nearly a sum over layers, which suits a least-squares fit: on
    measured masks of a 135M model a ridge reached R² 0.88 on the logarithms, and below 0 on the ratios.

    Attributes:
        scale: "log" or "identity".
        floor: the value that replaces a worth of exactly 0, a ratio that has underflowed ("log" only).
    """

    scale: str
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.scale not in SCALES[1:]:
            raise RequestError(f"unknown scale {self.scale!r}: a link is one of {', '.join(SCALES[1:])}")

    @classmethod
    def of(cls, worths: Floats, scale: str = "auto") -> Link:
        """Choose the link for finite worths `float64[M]`, M ≥ 1.

        "auto" takes the logarithm where no worth is negative and at least one is positive, and the identity otherwise:
        −NLL and −KL are logarithms already. The floor is the least positive worth.

        Raises:
            RequestError: for an unknown scale, and for "log" where "auto" would not take it.
        """
        if scale not in SCALES:
            raise RequestError(f"unknown scale {scale!r}: the scales are {', '.join(SCALES)}")
        positive = worths[worths > 0]
        negative = int(np.count_nonzero(worths < 0))
        if scale == "identity" or (scale == "auto" and (negative or not len(positive))):
            return cls("identity")
        if negative or not len(positive):
            what = f"{negative} of {len(worths)} worths are negative" if negative else "no worth is positive"
            raise RequestError(f"{what}, and have no logarithm: fit with scale='identity' (or 'auto')")
        return cls("log", float(positive.min()))

    def forward(self, worths: Floats) -> Floats:
        """Return worths `float64[M]` on the scale of the fit; `RequestError` for the logarithm of a negative worth."""
        if self.scale == "identity":
            return worths
        if negative := int(np.count_nonzero(worths < 0)):
            raise RequestError(f"{negative} of {len(worths)} worths are negative, but the fit is to their logarithm")
        logs: Floats = np.log(np.where(worths > 0, worths, self.floor))
        return logs

    def back(self, values: Floats) -> Floats:
        """Return values of the fit `float64[...]` as worths; infinity or 0 beyond the range of float64."""
        if self.scale == "identity":
            return values
        with np.errstate(over="ignore"):
            worths: Floats = np.exp(values)
        return worths
