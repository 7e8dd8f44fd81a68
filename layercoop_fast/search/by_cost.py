"""Every method on a target of unequal costs: players are removed until enough is saved.

coop solves the knapsack problem itself. Methods that rank players remove them in that order; greedy methods and
`angular` grow by one player at a time. Players whose removal turns out not to be needed are put back. Methods that
choose among masks of one size cannot do this and raise `RequestError`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Progress, n_players_of
from layercoop_fast.search import coop
from layercoop_fast.search.base import Allowed, Asked, Choice, get_method, worst_last
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
    """Choose players that together save at least the target; the answer is wanted (`search/target.py`) where possible.

    Greedy methods run for one size after another; on a game that remembers its measurements this costs no more than
    the last size alone. Raises `RequestError` for a method that cannot do this, and where no allowed mask saves enough.
    """
    asked = Asked(game, n_players_of(game), target.size, seed, budget, allowed, progress)
    if target.n_remove is not None:
        return _of_size(method, asked, target.n_remove)
    target.most_saving(allowed)  # raises where no allowed mask saves enough
    if method == "coop":
        return coop.search_for(asked, target)
    if method in RANKING:
        # The size does not change the ranking, so the family, which may lack this size, is left out here.
        ranked = _of_size(method, replace(asked, allowed=None), target.size)
        scores = np.arange(asked.n, 0, -1, dtype=np.float64) if ranked.scores is None else worst_last(ranked.scores)
        return replace(ranked, mask=target.least_valuable(scores, allowed))
    if method not in GROWING:
        able = ", ".join(("coop", *GROWING, *RANKING))
        raise RequestError(
            f"{method} chooses among masks of one size, and costs are unequal here: choose one of {able}"
        )
    return _grown(method, asked, target)


def _of_size(method: str, asked: Asked, size: int) -> Choice:
    """What a method chooses where `size` players go."""
    return get_method(method)(
        asked.game, size, seed=asked.seed, budget=asked.budget, allowed=asked.allowed, progress=asked.progress
    )


def _grown(method: str, asked: Asked, target: Target) -> Choice:
    """The method's choice at the first size that saves enough; where there is none, the most saving mask, trimmed."""
    n, allowed = asked.n, asked.allowed
    choice = None
    for size in range(1, n):
        try:
            choice = _of_size(method, asked, size)
        except RequestError:
            if allowed is None or allowed.best(np.zeros(n), n - size) is not None:
                raise
            continue  # this size has no member
        if target.met(choice.mask):
            return replace(choice, mask=target.trimmed_within(choice.mask, _values(choice), allowed))
    assert choice is not None  # some allowed mask saves enough, so its size has a member
    return replace(choice, mask=target.trimmed_within(target.most_saving(allowed), _values(choice), allowed))


def _values(choice: Choice) -> Floats:
    """How much a method would keep each player, float64 [n]: higher is kept rather."""
    if choice.scores is not None:
        return worst_last(choice.scores)
    order = choice.details.get("greedy_order", [])
    values = np.full(len(choice.mask), float(len(choice.mask)))
    values[order] = np.arange(len(order))
    return values
