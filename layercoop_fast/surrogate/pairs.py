"""Pairs of a mask and its measured worth: the checks that every fit makes."""

from __future__ import annotations

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Masks, check_masks


def check_pairs(masks: Masks, worths: Floats) -> tuple[Masks, Floats]:
    """Return masks `bool[M, n]` and worths as `float64[M]`, or raise `RequestError` where they do not fit together."""
    width = masks.shape[-1] if isinstance(masks, np.ndarray) and masks.ndim else 0
    masks = check_masks(masks, width)
    worths = np.asarray(worths, dtype=np.float64)
    if worths.shape != (len(masks),):
        raise RequestError(f"{len(masks)} masks need worths of shape [{len(masks)}], not {list(worths.shape)}")
    return masks, worths


def fittable_pairs(masks: Masks, worths: Floats) -> tuple[Masks, Floats]:
    """`check_pairs` of `bool[M, n]` and `float64[M]`, which also refuses NaN or infinite worths and no pairs at all."""
    masks, worths = check_pairs(masks, worths)
    if bad := int(np.count_nonzero(~np.isfinite(worths))):
        raise RequestError(
            f"{bad} of {len(worths)} worths are NaN or infinite: drop those pairs first, masks and worths together "
            "(finite_pairs does)"
        )
    if len(worths) == 0:
        raise RequestError("a surrogate needs at least one pair of mask and worth")
    return masks, worths


def finite_pairs(masks: Masks, worths: Floats) -> tuple[Masks, Floats, int]:
    """Drop the pairs whose worth is NaN or infinite, mask and worth together, and count them.

    Takes `bool[M, n]` and `float64[M]`, returns `bool[K, n]`, `float64[K]` and M − K, in the order given.
    """
    masks, worths = check_pairs(masks, worths)
    finite = np.isfinite(worths)
    return masks[finite], worths[finite], int(np.count_nonzero(~finite))
