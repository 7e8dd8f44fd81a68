"""Masks in the order of what the players that they remove cost: for families that no formula finds the cheapest of."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from layercoop_fast.masks.types import Floats, Masks

MOST_LOOKED_AT = 5_000
"""Masks that are looked at before a family is said to have none: all there are of 14 players."""


def in_order_of_cost(costs: Floats, removes: Any, part_of: Any, most: int = MOST_LOOKED_AT) -> Iterator[Masks]:
    """The `most` cheapest masks (bool [n]) that remove `removes[p]` of the players of each part, the cheapest first.

    Args:
        costs: float64 [n], of removing each player.
        removes: int [P], how many go of each part; of none more than it has.
        part_of: int [n], the part that each player is in.
        most: how many to give at most.

    A set of removed players is followed by those in which one of them gives way to the next more expensive one of its
    part. All sets are reached so, none before one that is cheaper.
    """
    ranked = [np.flatnonzero(part_of == part) for part in range(len(removes))]
    ranked = [players[np.argsort(costs[players], kind="stable")] for players in ranked]
    if any(count > len(players) for count, players in zip(removes, ranked, strict=True)):
        return iter(())
    return islice(_sets(costs, ranked, [int(count) for count in removes]), most)


def _sets(costs: Floats, ranked: list[Any], removes: list[int]) -> Iterator[Masks]:
    first = tuple(tuple(range(count)) for count in removes)

    def mask_of(places: tuple[tuple[int, ...], ...]) -> Masks:
        mask = np.ones(len(costs), dtype=np.bool_)
        for players, taken in zip(ranked, places, strict=True):
            mask[players[list(taken)]] = False
        return mask

    def cost(places: tuple[tuple[int, ...], ...]) -> float:
        return float(costs[~mask_of(places)].sum())

    waiting, seen = [(cost(first), first)], {first}
    while waiting:
        _, places = heapq.heappop(waiting)
        yield mask_of(places)
        for part, taken in enumerate(places):
            for turn, place in enumerate(taken):
                if place + 1 < len(ranked[part]) and place + 1 not in taken:
                    moved = (*taken[:turn], place + 1, *taken[turn + 1 :])
                    other = (*places[:part], moved, *places[part + 1 :])
                    if other not in seen:
                        seen.add(other)
                        heapq.heappush(waiting, (cost(other), other))
