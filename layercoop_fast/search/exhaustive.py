"""Every mask of the size, where there are few enough: the true optimum that other methods are compared with."""

from __future__ import annotations

from itertools import combinations, islice
from math import comb

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Masks, play
from layercoop_fast.search.base import Asked, Choice, finite_or_none, search_method

DEFAULT_BUDGET = 20_000
# Masks of one call. Consecutive masks in this order keep the same first layers, so that a call shares most of the work.
_CALL = 4096


@search_method
def search(asked: Asked) -> Choice:
    """Measure all allowed masks that remove `n_remove` players and take the one of highest worth, the first of ties.

    NaN worths rank last. Nothing is random, so `seed` has no effect. Raises `RequestError` where there are more masks
    of the size than the budget (20,000 by default), allowed or not, and where none is allowed.
    """
    n, n_remove, allowed = asked.n, asked.n_remove, asked.allowed
    total = comb(n, n_remove)
    asked.check_budget("exhaustive", total, DEFAULT_BUDGET)
    best: Masks | None = None
    highest, n_masks, seen, reason = -np.inf, 0, 0, ""
    every = combinations(range(n), n_remove)
    while chosen := list(islice(every, _CALL)):
        masks = np.ones((len(chosen), n), dtype=np.bool_)
        masks[np.arange(len(chosen))[:, None], chosen] = False
        if allowed is not None:
            reasons = [allowed.check(mask) for mask in masks]
            reason = reason or next((one for one in reasons if one is not None), "")
            masks = masks[[one is None for one in reasons]]
        worths = play(asked.game, masks)
        n_masks, seen = n_masks + len(masks), seen + len(chosen)
        if len(masks):
            worths = np.where(np.isnan(worths), -np.inf, worths)
            row = int(worths.argmax())
            if best is None or worths[row] > highest:
                best, highest = masks[row], float(worths[row])
        asked.report("masks of the size", seen, total)
    if best is None:
        raise RequestError(f"no allowed mask removes {n_remove} of {n} players: {reason}")
    return Choice(best, "exhaustive", None, n_masks, {"worth": finite_or_none(highest)})
