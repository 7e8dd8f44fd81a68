"""The signature that all search methods share, their registry, and common helpers. Imports no torch, to be fast."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of
from layercoop_fast.search.methods import METHODS


@dataclass(frozen=True, eq=False)
class Choice:
    """The result of a search.

    Attributes:
        mask: bool [n], True for the players that stay.
        method: name in `METHODS`.
        scores: float64 [n], contribution or importance of each player; None where the method scores no players.
        n_masks: number of measured masks that the choice is based on.
        details: further results of the method, ready for JSON.
    """

    mask: Masks
    method: str
    scores: Floats | None
    n_masks: int
    details: dict[str, Any] = field(default_factory=dict)


class Allowed(Protocol):
    """A family of masks to choose from, for instance those that have an exported form."""

    def check(self, mask: Masks, /) -> str | None:
        """Return None where `mask` (`bool[n]`) belongs to the family, else one line that says why not."""

    def best(self, costs: Floats, n_kept: int, /) -> Masks | None:
        """Return the member (`bool[n]`) that keeps `n_kept` players at the least total cost of the removed ones.

        `costs` is `float64[n]`. None where no member keeps that number.
        """


@dataclass(frozen=True)
class Asked:
    """What a method is asked for.

    Attributes:
        game: to search.
        n: number of its players.
        n_remove: number of players to remove, 1 to n − 1.
        seed: of all that is drawn.
        budget: number of masks that the method may measure; None for its own default.
        allowed: the masks to choose from; None for all.
        progress: called with (stage, done, total).
    """

    game: Game
    n: int
    n_remove: int
    seed: int = 0
    budget: int | None = None
    allowed: Allowed | None = None
    progress: Progress | None = None

    def check_budget(self, method: str, n_masks: int, budget: int | None = None) -> None:
        """Raise `RequestError` unless the budget, or the method's own one, covers the `n_masks` that it measures."""
        most = budget if self.budget is None else self.budget
        if most is not None and most < n_masks:
            raise RequestError(
                f"{method} measures {n_masks} masks to remove {self.n_remove} of {self.n} players: the budget is {most}"
            )

    def least_valuable(self, scores: Floats) -> Masks:
        """The allowed mask (`bool[n]`) without the players of least score, float64 [n] (`least_valuable`)."""
        return least_valuable(scores, self.n_remove, self.allowed)

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell how far the search is, where somebody wants to know."""
        if self.progress is not None:
            self.progress(stage, done, total)


class SearchMethod(Protocol):
    """The `search` of each method's module."""

    def __call__(
        self,
        game: Game,
        n_remove: int,
        *,
        seed: int = 0,
        budget: int | None = None,
        allowed: Allowed | None = None,
        progress: Progress | None = None,
    ) -> Choice:
        """Choose which `n_remove` players of `game` to remove.

        `budget` is the number of masks that the method may measure, its own default where None. `allowed` restricts the
        answer. Raises `RequestError` where `n_remove` is out of range, the budget is too small, or no mask is allowed.
        """


def search_method(find: Callable[[Asked], Choice]) -> SearchMethod:
    """Make a search method of a function that is handed all it is asked for in one object, the size checked."""

    def search(
        game: Game,
        n_remove: int,
        *,
        seed: int = 0,
        budget: int | None = None,
        allowed: Allowed | None = None,
        progress: Progress | None = None,
    ) -> Choice:
        n = n_players_of(game)
        check_n_remove(n, n_remove)
        return find(Asked(game, n, n_remove, seed, budget, allowed, progress))

    search.__doc__, search.__module__ = find.__doc__, find.__module__
    return search


def get_method(name: str) -> SearchMethod:
    """Return the `search` of the method called `name`; only its module is imported.

    Raises `RequestError` for an unknown name, with the most similar name and the whole list.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RequestError(f"unknown method {name!r}: {hint}The methods are {', '.join(METHODS)}")
    method: SearchMethod = importlib.import_module(f"layercoop_fast.search.{name}").search
    return method


def check_n_remove(n_players: int, n_remove: int) -> None:
    """Raise `RequestError` unless at least one player goes and at least one stays."""
    if n_players < 2:
        raise RequestError("a game of 1 player cannot lose a player: one has to stay")
    if not 0 < n_remove < n_players:
        raise RequestError(f"of {n_players} players, 1 to {n_players - 1} can be removed, not {n_remove}")


def offered(game: Game, method: str, name: str, count: int, *arguments: Any) -> Floats:
    """The numbers float64 [count] that a game's method `name(*arguments)` gives, for a search that needs them.

    Raises `RequestError` for a game that has no such method, and for anything but `count` finite numbers.
    """
    ask = getattr(game, name, None)
    if ask is None:
        raise RequestError(f"{method} needs a game that offers {name}(), a game on a model: try sleb here")
    found = np.asarray(ask(*arguments), dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise RequestError(f"{name}() must give {count} finite numbers, not {found}")
    return found


def one_pass(method: str, offer: str) -> SearchMethod:
    """The search that removes the players of least score, where a game gives all scores by one pass of its full model.

    The game needs a method `offer() -> float64 [n]`; `RequestError` for a game without it. No mask is measured and
    nothing is drawn, so `seed`, `budget` and `progress` have no effect.
    """

    @search_method
    def search(asked: Asked) -> Choice:
        scores = offered(asked.game, method, offer, asked.n)
        return Choice(asked.least_valuable(scores), method, scores, 0)

    return search


def budget_or(budget: int | None, default: int) -> int:
    """The number of masks that a method may measure: `default` where None is asked for; `RequestError` below 1."""
    if budget is not None and budget < 1:
        raise RequestError(f"the budget must be at least 1 mask, not {budget}")
    return default if budget is None else budget


def least_valuable(scores: Floats, n_remove: int, allowed: Allowed | None) -> Masks:
    """Return the mask (`bool[n]`) without the `n_remove` players of least score; ties are removed in order of index.

    Where that mask is not allowed, it is the allowed one that removes the least total score; `RequestError` if there
    is none. `scores` is float64 [n].
    """
    mask = np.ones(len(scores), dtype=np.bool_)
    mask[np.argsort(scores, kind="stable")[:n_remove]] = False
    reason = allowed.check(mask) if allowed is not None else None
    if allowed is None or reason is None:
        return mask
    best = allowed.best(scores, len(scores) - n_remove)
    if best is None:
        raise RequestError(f"no allowed mask removes {n_remove} of {len(scores)} players: {reason}")
    return best


def worst_last(costs: Floats) -> Floats:
    """Return `costs` (`float64[n]`, low is good) with NaN and infinities replaced by finite numbers beyond all others.

    With d the difference of the highest and the lowest finite cost, NaN and +infinity become highest + d + 1, and
    −infinity becomes lowest − d − 1.
    """
    finite = costs[np.isfinite(costs)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    margin = high - low + 1.0
    return np.nan_to_num(costs, nan=high + margin, posinf=high + margin, neginf=low - margin)


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None, which JSON can write, for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def perplexity(nll: float) -> float | None:
    """exp(nll), or None where it is not finite."""
    return finite_or_none(math.exp(nll)) if nll < 700 else None
