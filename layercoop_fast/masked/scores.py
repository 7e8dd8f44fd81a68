"""What one mask measures."""

from __future__ import annotations

from dataclasses import dataclass

from layercoop_fast.masks.types import Floats


@dataclass(frozen=True)
class Scores:
    """One mask's measured numbers: mean NLL and mean KL to the full model of each window, float64 [W] each.

    `kl` is NaN throughout where it was not measured.
    """

    nll: Floats
    kl: Floats
