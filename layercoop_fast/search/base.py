"""The one call form of every search, the registry of methods, and what they share. Free of torch: names come fast."""

from __future__ import annotations

import difflib
import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Masks, Progress
from layercoop_fast.search.methods import METHODS


@dataclass(frozen=True, eq=False)
class Choice:
    """What a search decided."""

    mask: Masks
    """`bool[n]`: True for the players that stay."""
    method: str
    """The name in `METHODS`."""
    scores: Floats | None
    """`float64[n]`: the contribution or importance of each player, or None where the method scores no player."""
    n_masks: int
    """Measured masks that the choice rests on."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else the method can say for itself, ready for JSON."""


class Allowed(Protocol):
    """A family of masks to choose from, for instance those that have an exported form."""

    def check(self, mask: Masks, /) -> str | None:
        """Return None where `mask` (`bool[n]`) belongs to the family, else one line that says why not."""
        ...

    def best(self, costs: Floats, n_kept: int, /) -> Masks | None:
        """Return the member (`bool[n]`) that keeps `n_kept` players at the least total cost of the removed ones.

        `costs` is `float64[n]`. None where no member keeps so many.
        """
        ...


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

        `budget` is how many masks the method may ask of the game, its own default where None. `allowed` restricts the
        answer. Raises `RequestError` when `n_remove` is out of range, the budget does not do, or nothing is allowed.
        """
        ...


def get_method(name: str) -> SearchMethod:
    """Return the `search` of the method called `name`, importing only that one.

    Raises `RequestError` for an unknown name, with the nearest name and the whole list.
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
        raise RequestError("of 1 player none can be removed: one has to stay")
    if not 0 < n_remove < n_players:
        raise RequestError(f"of {n_players} players, 1 to {n_players - 1} can be removed, not {n_remove}")


def check_budget(method: str, n_masks: int, budget: int | None, n_players: int, n_remove: int) -> None:
    """Raise `RequestError` unless the budget (None: no limit) covers the `n_masks` that a method has to ask."""
    if budget is not None and budget < n_masks:
        raise RequestError(
            f"{method} asks {n_masks} masks to remove {n_remove} of {n_players} players: the budget is {budget}"
        )


def offered(game: Game, method: str, name: str, count: int, *arguments: Any) -> Floats:
    """What a game on a model says of itself, float64 [count]: its `name(*arguments)`, for a method that lives by it.

    Raises `RequestError` for a game that does not offer that, and for anything but `count` finite numbers.
    """
    ask = getattr(game, name, None)
    if ask is None:
        raise RequestError(f"{method} needs a game that offers {name}(), a game on a model: try sleb here")
    found = np.asarray(ask(*arguments), dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise RequestError(f"{name}() must give {count} finite numbers, not {found}")
    return found


def least_valuable(scores: Floats, n_remove: int, allowed: Allowed | None) -> Masks:
    """Return the mask (`bool[n]`) without the `n_remove` players of least score; of equal scores the first index goes.

    Where that mask is not allowed, the allowed one with the least total score removed. `RequestError` if there is none.
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
    """Return `costs` (`float64[n]`, low is good) with NaN and infinities as finite numbers beyond all others.

    NaN and +infinity lie above the highest by as much as the finite ones span, and 1; −infinity so below the lowest.
    """
    finite = costs[np.isfinite(costs)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    margin = high - low + 1.0
    return np.nan_to_num(costs, nan=high + margin, posinf=high + margin, neginf=low - margin)


def finite_or_none(value: float) -> float | None:
    """Return `value` as JSON can write it: None stands for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def perplexity(nll: float) -> float | None:
    """exp(nll), or None where that is no finite number."""
    return finite_or_none(math.exp(nll)) if nll < 700 else None
