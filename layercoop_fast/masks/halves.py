"""Masks at the edge of the runtime: what people write, and the halves of blocks that executors run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Masks

Halves: TypeAlias = npt.NDArray[np.uint8]
"""`uint8[L]`: of each block 1 where its attention is kept, plus 2 where its MLP is; 3 is a whole block, 0 none."""

WHOLE = 3
PARTS = ("attn", "mlp")
"""The names of the halves of a block, in the order in which they run; bit i of `Halves` is half i."""

MaskLike: TypeAlias = Masks | Halves | Sequence[bool] | Sequence[int]


def read_mask(mask: MaskLike | None, n_layers: int, held: Halves | None = None) -> Halves:
    """The halves of blocks that a mask keeps.

    Args:
        mask: bool [L], True = kept; bool [2L] for attention and MLP of each block in turn; uint8 [L] as `Halves`;
            None keeps all that is held.
        n_layers: number of blocks L.
        held: what the loaded weights allow, by default everything.

    Raises `RequestError` for another width or type, for a mask that keeps nothing, and for one that keeps what was
    left out when the model was opened.
    """
    held = np.full(n_layers, WHOLE, dtype=np.uint8) if held is None else held
    if mask is None:
        return np.array(held, dtype=np.uint8)
    given: npt.NDArray[np.generic] = np.asarray(mask)
    if given.dtype == np.uint8 and given.shape == (n_layers,) and given.max() <= WHOLE:
        halves = given.astype(np.int64)
    elif given.dtype == np.bool_ and given.shape == (n_layers,):
        halves = np.where(given, WHOLE, 0)
    elif given.dtype == np.bool_ and given.shape == (2 * n_layers,):
        halves = np.where(given[0::2], 1, 0) + np.where(given[1::2], 2, 0)
    else:
        raise RequestError(
            f"a mask is bool[{n_layers}], one entry a block (True = kept), or bool[{2 * n_layers}] for attention and "
            f"MLP of each block; got {given.dtype}{list(given.shape)}"
        )
    if not halves.any():
        raise RequestError("the mask removes every block: at least one must be kept")
    # A whole block of a model whose halves were left out means what is left of it.
    whole = (halves == WHOLE) & (held > 0)
    halves[whole] = held[whole]
    if (missing := np.flatnonzero(halves & ~held)).size:
        raise RequestError(
            f"the mask keeps block {missing[0]}, whose weights were left out when the model was opened: "
            "open it with a mask that keeps it"
        )
    return halves.astype(np.uint8)
