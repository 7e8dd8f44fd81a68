"""Every method on a target of unequal costs: players go until enough is saved.

coop solves the knapsack itself. Rules that rank players remove them in that order, greedy ones and runs grow by one
player at a time; what turns out not to be needed is put back. Methods that choose among masks of one size have no
natural way, and say so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Progress, n_players_of
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
    target.dearest(allowed)  # or nothing allowed saves enough
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


def _grown(
    method: str,
    game: Game,
    target: Target,
    seed: int,
    budget: int | None,
    allowed: Allowed | None,
    progress: Progress | None,
) -> Choice:
    """The first size at which the method's own choice saves enough; where none does, the dearest mask, trimmed."""
    n = n_players_of(game)
    choice = None
    for size in range(1, n):
        try:
            choice = get_method(method)(game, size, seed=seed, budget=budget, allowed=allowed, progress=progress)
        except RequestError:
            if allowed is None or allowed.best(np.zeros(n), n - size) is not None:
                raise
            continue  # this size has no member
        if target.met(choice.mask):
            return replace(choice, mask=target.trimmed_within(choice.mask, _values(choice), allowed))
    assert choice is not None  # some allowed mask saves enough, so its size has a member
    return replace(choice, mask=target.trimmed_within(target.dearest(allowed), _values(choice), allowed))


def _values(choice: Choice) -> Floats:
    """Which players a method would keep, float64 [n]: the higher the sooner."""
    if choice.scores is not None:
        return worst_last(choice.scores)
    order = choice.details.get("greedy_order", [])
    values = np.full(len(choice.mask), float(len(choice.mask)))
    values[order] = np.arange(len(order))
    return values
