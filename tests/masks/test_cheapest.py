"""Masks in the order of their cost, and a family that such an order is needed for."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import tiny_model

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.export.players import ExportablePlayers
from layercoop_fast.masked.players import make_players
from layercoop_fast.masks.cheapest import in_order_of_cost
from layercoop_fast.masks.stratified import all_masks


@pytest.mark.parametrize("removes", [[3, 0], [0, 0], [2, 3], [4, 3], [1, 2]])
@pytest.mark.parametrize("ties", [False, True])
def test_every_mask_once_the_cheapest_first(removes: list[int], ties: bool) -> None:
    rng = np.random.default_rng(1)
    part_of = np.array([0, 1, 0, 1, 0, 1, 0])
    costs = rng.integers(0, 2, 7).astype(float) if ties else rng.normal(size=7)
    found = list(in_order_of_cost(costs, removes, part_of))
    sums = [costs[~mask].sum() for mask in found]
    np.testing.assert_allclose(sums, np.sort(sums))
    expected = {mask.tobytes() for mask in all_masks(7) if np.bincount(part_of[~mask], minlength=2).tolist() == removes}
    expected |= {bytes(7)} if removes == [4, 3] else set()  # `all_masks` leaves out the mask that keeps nothing
    assert [mask.tobytes() for mask in found] == list(dict.fromkeys(mask.tobytes() for mask in found))
    assert {mask.tobytes() for mask in found} == expected


def test_more_than_a_part_has_and_no_more_than_asked() -> None:
    costs, part_of = np.zeros(6), np.array([0, 0, 0, 1, 1, 1])
    assert list(in_order_of_cost(costs, [4, 0], part_of)) == []
    assert len(list(in_order_of_cost(costs, [1, 1], part_of, most=4))) == 4


def test_groups_of_a_hybrid_that_must_keep_one_of_a_kind() -> None:
    """The four cheapest groups are all the layers with attention; the next cheapest mask keeps one of those."""
    model = tiny_model("qwen3_next", 8)
    attending = [layer for layer, kind in enumerate(model.config.layer_types) if kind == "full_attention"]
    others = [layer for layer in range(8) if layer not in attending][:2]
    groups = [[layer] for layer in (*attending, *others)]
    rest = [layer for layer in range(8) if layer not in (*attending, *others)]
    family = ExportablePlayers(model.config, make_players([*groups, *([layer] for layer in rest)], Skeleton(model)))
    costs = np.array([1.0] * len(attending) + [2.0, 3.0] + [9.0] * len(rest))
    mask = family.best(costs, 8 - len(attending))
    assert mask is not None
    assert family.check(mask) is None
    assert costs[~mask].sum() == len(attending) + 1
