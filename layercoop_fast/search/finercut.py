"""Greedy removal by the change of the output: the player without which the model's predictions change least is removed.

The worth is −KL(full model ‖ model without), whatever the game's own utility is: it compares with the full model's
predictions, not with the text. The method was made for sublayers as players, and works for any. Source: FinerCut,
arXiv 2405.18218, which offers several distances between the two outputs; this is the one with KL.
"""

from __future__ import annotations

from dataclasses import replace

from layercoop_fast.errors import RequestError
from layercoop_fast.search.base import Asked, Choice, search_method
from layercoop_fast.search.greedy import greedy


@search_method
def search(asked: Asked) -> Choice:
    """Remove one player at a time, each time the one without which the output diverges least (`search.greedy`).

    Nothing is random, so `seed` has no effect. Raises `RequestError` for a game without `with_utility("kl")`, for one
    on items with options, and where the budget is smaller than the number of masks that greedy removal measures.
    """
    with_utility = getattr(asked.game, "with_utility", None)
    if with_utility is None:
        raise RequestError("finercut needs a game that offers with_utility(), a game on a model: try sleb here")
    if not getattr(asked.game, "n_windows", 1):
        raise RequestError(
            "finercut needs the divergence from the full model on text, and this game is on items with options: "
            "try sleb here"
        )
    return greedy(replace(asked, game=with_utility("kl")), "finercut")
