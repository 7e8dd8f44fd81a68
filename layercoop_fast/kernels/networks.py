"""The weights of an ensemble of one-hidden-layer networks, as the kernels take them: plain NumPy, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError

Activation: TypeAlias = Literal["celu", "relu", "gelu", "tanh"]
Output: TypeAlias = Literal["sigmoid", "linear"]
Weights: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Networks:
    """E networks of n players and H hidden units; network e is f_e(m) = out(v_e · act(W_e m + b_e) + c_e).

    The ensemble's value of a mask is the mean of f_e over e. CELU has α = 1 and GELU is the exact one (by erf), as
    torch's defaults. The arrays are stored C-contiguous and read-only (copied where they were not contiguous).

    Raises:
        RequestError: for shapes that do not fit together, a dtype other than float32, NaN or infinite weights, and
            unknown names.

    Attributes:
        hidden_weight: W, `float32[E, H, n]`.
        hidden_bias: b, `float32[E, H]`.
        output_weight: v, `float32[E, H]`.
        output_bias: c, `float32[E]`.
    """

    hidden_weight: Weights
    hidden_bias: Weights
    output_weight: Weights
    output_bias: Weights
    activation: Activation = "celu"
    output: Output = "sigmoid"

    def __post_init__(self) -> None:
        ranks = {"hidden_weight": 3, "hidden_bias": 2, "output_weight": 2, "output_bias": 1}
        for name, rank in ranks.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), rank))
        e, h, n = self.hidden_weight.shape
        shapes = {name: list(getattr(self, name).shape) for name in ranks}
        if min(e, h, n) < 1 or list(shapes.values()) != [[e, h, n], [e, h], [e, h], [e]]:
            raise RequestError(
                "the weights of E networks of n players and H hidden units are hidden_weight [E, H, n], hidden_bias "
                f"[E, H], output_weight [E, H] and output_bias [E], not {shapes}"
            )
        for name, names in (("activation", get_args(Activation)), ("output", get_args(Output))):
            if getattr(self, name) not in names:
                raise RequestError(f"{name} must be one of {', '.join(names)}, not {getattr(self, name)!r}")

    @property
    def n_networks(self) -> int:
        """E, the number of networks."""
        return int(self.hidden_weight.shape[0])

    @property
    def n_hidden(self) -> int:
        """H, the number of hidden units of each."""
        return int(self.hidden_weight.shape[1])

    @property
    def n_players(self) -> int:
        """n, the number of players."""
        return int(self.hidden_weight.shape[2])


def _checked(name: str, array: object, rank: int) -> Weights:
    """Return a read-only C-contiguous view or copy of `array`, or raise `RequestError` saying what is wrong with it."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise RequestError(f"{name} must be a NumPy array of dtype float32, not {kind}")
    if array.ndim != rank:
        raise RequestError(f"{name} must have {rank} dimensions, not {array.ndim}")
    if bad := int(np.count_nonzero(~np.isfinite(array))):
        raise RequestError(f"{bad} of {array.size} numbers of {name} are NaN or infinite: this network was not fitted")
    checked: Weights = np.ascontiguousarray(array).view()
    checked.flags.writeable = False
    return checked
