"""What a vision-language model receives besides the tokens of its windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """What a vision-language model receives besides the tokens of its windows.

    Attributes:
        inputs: keyword arguments of the model's forward (`pixel_values`, `image_grid_thw`, ...), each with as many rows
            a window; the tokens of every window begin with those of its picture.
        first: the first position whose next token is scored, the last one of the picture's prefix.
    """

    inputs: Mapping[str, Tensor]
    first: int

    def part(self, first: int, last: int, n_windows: int, copies: int = 1) -> dict[str, Tensor]:
        """The arguments, [rows, ...] each, for windows first .. last (last excluded), `copies` times side by side.

        `n_windows` is the number of windows that `inputs` is of.
        """
        found = {}
        for name, value in self.inputs.items():
            rows = len(value) // n_windows
            found[name] = value[first * rows : last * rows].repeat(copies, *[1] * (value.dim() - 1))
        return found
