"""Greedy removal, which `sleb` and `finercut` do on different worths. Not a method of the registry."""

from __future__ import annotations

import numpy as np

from layercoop_fast.game.protocol import Game, Progress, n_players_of, play
from layercoop_fast.search.base import Allowed, Choice, check_budget, check_n_remove, finite_or_none, least_valuable


def greedy(
    game: Game, n_remove: int, *, method: str, budget: int | None, allowed: Allowed | None, progress: Progress | None
) -> Choice:
    """Remove one player at a time, each time the one without which the worth is highest; of equal ones the first.

    Each round asks all its candidates in one call: k·n − k(k − 1)/2 masks for k removals. NaN worths rank last. Raises
    `RequestError` in the name of `method` when the budget is smaller than that.

    Only the final mask has to be allowed. Where greed ends outside, the allowed mask of least total rank is taken: the
    players rank in the order they were removed, then those left as the last round ranks them.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    n_masks = n_remove * n - n_remove * (n_remove - 1) // 2
    check_budget(method, n_masks, budget, n, n_remove)

    kept = np.ones(n, dtype=np.bool_)
    removed: list[int] = []
    after: list[float | None] = []
    for _ in range(n_remove):
        players = np.flatnonzero(kept)
        candidates = np.tile(kept, (len(players), 1))
        candidates[np.arange(len(players)), players] = False
        worths = play(game, candidates)
        ranking = np.argsort(-worths, kind="stable")  # NaN sorts last
        least = int(players[ranking[0]])
        kept[least] = False
        removed.append(least)
        after.append(finite_or_none(worths[ranking[0]]))
        if progress is not None:
            progress("removals", len(removed), n_remove)

    ranks = np.empty(n)
    ranks[[*removed, *players[ranking[1:]]]] = np.arange(n)
    mask = least_valuable(ranks, n_remove, allowed)
    return Choice(mask, method, None, n_masks, {"greedy_order": removed, "greedy_worths": after})
