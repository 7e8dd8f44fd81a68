"""A nested family of masks as `layercoop.json` holds it: every size of a model from one copy of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.search.base import Choice, finite_or_none, perplexity

if TYPE_CHECKING:
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.masked.players import Players
    from layercoop_fast.masks.types import Masks
    from layercoop_fast.search.target import Target


def check_nested(method: str, *, settles: bool, finalists: int) -> None:
    """Raise `RequestError` for what a family does not go with, as far as that can be seen before anything is opened."""
    if method != "coop":
        raise RequestError(f"nested= is a search of coop's, and the method is {method}: leave one of the two out")
    if settles or finalists > 1:
        other = "settle=" if settles else "finalists="
        raise RequestError(
            f"{other} chooses again among masks of one size, and nested= holds all sizes together: leave one out"
        )


def check_counted(target: Target) -> None:
    """Raise `RequestError` where the goal is not a number of players: a family has one mask for each number."""
    if target.n_remove is None:
        raise RequestError(
            "nested= has a mask for every number of players, and these cost unequally: say how many, remove=K"
        )


def family_record(game: ModelGame, heldout: ModelGame | None, choice: Choice) -> dict[str, Any] | None:
    """The family of a choice that has one: `sizes`, from few players removed to many, and what it `cost`.

    Each size has `n_removed`, `removed` (labels), `worth`, `ppl`, `heldout_ppl` (None without a held-out text), `loss`,
    and of the best mask of this size by itself `free` (labels), `free_ppl` and `free_loss`; `price` is the loss beyond
    that one's. All on the model's own weights, whatever is repaired in a checkpoint.
    """
    if "nested_cost" not in choice.details:
        return None
    steps = choice.details["nested"]
    family, free = (
        np.stack([_mask(game.masked.players, step[name]) for step in steps]) for name in ("removed", "free")
    )
    measured, alone = game.evaluate(family), game.evaluate(free)
    unseen = [None] * len(steps) if heldout is None else [perplexity(nll) for nll in heldout.evaluate(family).nll]
    sizes = [
        {
            "n_removed": step["n_removed"],
            "removed": _labels(game.masked.players, family[row]),
            "worth": finite_or_none(measured.worths[row]),
            "ppl": perplexity(measured.nll[row]),
            "heldout_ppl": unseen[row],
            "loss": step["loss"],
            "free": _labels(game.masked.players, free[row]),
            "free_ppl": perplexity(alone.nll[row]),
            "free_loss": step["free_loss"],
            "price": step["loss"] - step["free_loss"],
        }
        for row, step in enumerate(steps)
    ]
    return {"sizes": sizes, "cost": choice.details["nested_cost"]}


def _mask(players: Players, removed: list[int]) -> Masks:
    mask: Masks = ~np.isin(np.arange(players.n_players), removed)
    return mask


def _labels(players: Players, mask: Masks) -> list[Any]:
    units = players.unit_masks(mask[None])[0]
    return [players.label(int(unit)) for unit in np.flatnonzero(~units)]
