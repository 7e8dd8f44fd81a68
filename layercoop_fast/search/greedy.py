"""Greedy removal, which `sleb` and `finercut` use with different worths. Not a method of the registry."""

from __future__ import annotations

import numpy as np

from layercoop_fast.masks.types import play
from layercoop_fast.search.base import Asked, Choice, finite_or_none
from layercoop_fast.search.target import Target


def greedy(asked: Asked, method: str) -> Choice:
    """Remove one player at a time, each time the one without which the worth is highest; the first of ties.

    Each round measures all its candidates in one call: k·n − k(k − 1)/2 masks for k removals. NaN worths rank last.
    Raises `RequestError` that names `method` where the budget is smaller than that.

    Only the final mask has to be allowed: each round takes the best candidate from which an allowed mask can still be
    reached, as far as the family's `best` can tell. Where the final mask is not allowed all the same, the allowed mask
    of least total rank is taken: players rank in the order of their removal, then the others as in the last round.
    """
    n, n_remove, allowed = asked.n, asked.n_remove, asked.allowed
    n_masks = n_remove * n - n_remove * (n_remove - 1) // 2
    asked.check_budget(method, n_masks)

    target = Target.of_count(n, n_remove)
    kept = np.ones(n, dtype=np.bool_)
    removed: list[int] = []
    after: list[float | None] = []
    for _ in range(n_remove):
        players = np.flatnonzero(kept)
        candidates = np.tile(kept, (len(players), 1))
        candidates[np.arange(len(players)), players] = False
        worths = play(asked.game, candidates)
        ranking = np.argsort(-worths, kind="stable")  # NaN sorts last
        first = next((row for row in ranking if target.leads_on(candidates[row], allowed)), ranking[0])
        least = int(players[first])
        kept[least] = False
        removed.append(least)
        after.append(finite_or_none(worths[first]))
        asked.report("removals", len(removed), n_remove)

    ranks = np.empty(n)
    ranks[[*removed, *players[ranking[ranking != first]]]] = np.arange(n)
    return Choice(asked.least_valuable(ranks), method, None, n_masks, {"greedy_order": removed, "greedy_worths": after})
