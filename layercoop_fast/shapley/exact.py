"""Exact Shapley values by their definition: the reference for all other estimators."""

from __future__ import annotations

from math import comb

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.masks.types import Game, n_players_of, play, require_finite
from layercoop_fast.shapley.values import ShapleyValues

_MAX_PLAYERS = 16


def exact_shapley(game: Game, n_players: int | None = None) -> ShapleyValues:
    """φ_i = Σ over S without i of |S|! (n − |S| − 1)! / n! · (v(S ∪ i) − v(S)), from all 2ⁿ worths in one call.

    Raises:
        RequestError: for more than 16 players, and when a worth is NaN or infinite.

    Examples:
        >>> from layercoop_fast import exact_shapley
        >>> def gloves(masks):  # a left glove and one of two right gloves make a pair
        ...     return (masks[:, 0] & (masks[:, 1] | masks[:, 2])).astype(float)
        >>> exact_shapley(gloves, n_players=3).values.round(3).tolist()
        [0.667, 0.167, 0.167]
    """
    n = n_players_of(game, n_players)
    if n > _MAX_PLAYERS:
        raise RequestError(
            f"exact values need all 2^n masks and are for at most {_MAX_PLAYERS} players, not {n}: use shapley_values"
        )
    masks = all_masks(n)
    worths = require_finite(play(game, masks))
    rows = np.arange(len(masks))
    sizes = masks.sum(axis=1)
    weights = np.array([1 / (n * comb(n - 1, size)) for size in range(n)])  # |S|! (n − |S| − 1)! / n!
    values = np.empty(n)
    for player in range(n):
        without = rows[~masks[:, player]]
        values[player] = weights[sizes[without]] @ (worths[without | 1 << player] - worths[without])
    return ShapleyValues(values, np.zeros(n), len(masks), "exact")
