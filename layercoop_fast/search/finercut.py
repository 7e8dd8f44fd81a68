"""Greedy removal by what it does to the output: the player goes without which the model's predictions change least.

The worth is −KL(full model ‖ model without), whatever the game's own worth is: nothing the text says is asked, only
what the full model would say. Made for halves of blocks as players (`--players sublayers`), right for any. Source:
FinerCut, arXiv 2405.18218, which offers several distances between the two outputs; of them KL is what the engine
measures.
"""

from __future__ import annotations

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Game, Progress
from layercoop_fast.search.base import Allowed, Choice
from layercoop_fast.search.greedy import greedy


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Remove one player at a time, each time the one without which the output diverges least (`search.greedy`).

    Needs a game that offers `with_utility("kl")`, and raises `RequestError` for one that does not, for one on items
    with options, or when the budget is smaller than what greed asks. Nothing is drawn, so `seed` has no effect.
    """
    with_utility = getattr(game, "with_utility", None)
    if with_utility is None:
        raise RequestError("finercut needs a game that offers with_utility(), a game on a model: try sleb here")
    if not getattr(game, "n_windows", 1):
        raise RequestError(
            "finercut goes by the divergence from the full model on text, and this game is on items with options: "
            "try sleb here"
        )
    return greedy(with_utility("kl"), n_remove, method="finercut", budget=budget, allowed=allowed, progress=progress)
