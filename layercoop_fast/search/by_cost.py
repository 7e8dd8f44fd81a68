"""Every method on a target of unequal costs: players go until enough is saved.

coop solves the knapsack itself. Rules that rank players remove them in that order, greedy ones and runs grow by one
player at a time; what turns out not to be needed is put back. Methods that choose among masks of one size have no
natural way, and say so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.protocol import Floats, Game, Masks, Progress, n_players_of
from layercoop_fast.search import coop
from layercoop_fast.search.base import Allowed, Choice, get_method, worst_last
from layercoop_fast.search.target import Target

RANKING = ("official", "shortgpt", "cka", "zigzag", "ppl", "taylor", "reverse")
GROWING = ("sleb", "finercut", "angular")


def search_by_cost(
    method: str,
    game: Game,
    target: Target,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Choose players that save at least what `target` asks; the answer is wanted (`search/target.py`) where it can be.

    Greedy methods are asked size after size, and on a game that remembers what it measured that costs no more than
    the last size alone. Raises `RequestError` for a method that does not do this, and where nothing allowed saves
    enough.
    """
    n = n_players_of(game)
    if target.n_remove is not None:
        by_count = get_method(method)
        return by_count(game, target.n_remove, seed=seed, budget=budget, allowed=allowed, progress=progress)
    most_saved(target, allowed)
    if method == "coop":
        return coop.search_for(game, target, seed=seed, budget=budget, allowed=allowed, progress=progress)
    if method in RANKING:
        # The size does not change the ranking; families without this size are asked for none.
        ranked = get_method(method)(game, target.size, seed=seed, budget=budget, progress=progress)
        scores = np.arange(n, 0, -1, dtype=np.float64) if ranked.scores is None else worst_last(ranked.scores)
        return replace(ranked, mask=target.least_valuable(scores, allowed))
    if method not in GROWING:
        able = ", ".join(("coop", *GROWING, *RANKING))
        raise RequestError(
            f"{method} chooses among masks of one size, and costs are unequal here: choose one of {able}"
        )
    return _grown(method, game, target, seed, budget, allowed, progress)


def most_saved(target: Target, allowed: Allowed | None) -> float:
    """The most that an allowed mask saves. Raises `RequestError` naming it where the target is beyond it."""
    n = len(target.costs)
    most = 0.0
    for n_kept in range(1, n):
        mask = _dearest(target.costs, n_kept, allowed)
        if mask is not None:
            most = max(most, target.saved(mask))
            if target.met(mask):
                return most
    share = most / float(target.costs.sum()) if target.costs.any() else 0.0
    raise RequestError(
        f"no allowed mask saves {target.least:.6g} of the players' {target.costs.sum():.6g}: the nearest saves "
        f"{most:.6g}, {share:.1%} of it"
    )


def _dearest(costs: Floats, n_kept: int, allowed: Allowed | None) -> Masks | None:
    if allowed is not None:
        return allowed.best(-costs, n_kept)
    mask = np.zeros(len(costs), dtype=np.bool_)
    mask[np.argsort(costs, kind="stable")[:n_kept]] = True
    return mask


def _grown(
    method: str,
    game: Game,
    target: Target,
    seed: int,
    budget: int | None,
    allowed: Allowed | None,
    progress: Progress | None,
) -> Choice:
    """The first size at which the method's own choice saves enough."""
    n = n_players_of(game)
    reason = RequestError("no allowed mask saves as much as is asked")
    for size in range(1, n):
        try:
            choice = get_method(method)(game, size, seed=seed, budget=budget, allowed=allowed, progress=progress)
        except RequestError as error:
            if allowed is None or allowed.best(np.zeros(n), n - size) is not None:
                raise
            reason = error  # this size has no member
            continue
        if target.met(choice.mask):
            order = choice.details.get("greedy_order", [])
            values = np.full(n, float(n))
            values[order] = np.arange(len(order))
            if choice.scores is not None:
                values = worst_last(choice.scores)
            trimmed = target.trimmed(choice.mask, values)
            fine = allowed is None or allowed.check(trimmed) is None
            return replace(choice, mask=trimmed if fine else choice.mask)
    raise reason
