"""Targets of unequal costs: every answer saves enough with no player to spare, and coop's is the best there is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_games import Influential, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.search import coop
from layercoop_fast.search.base import Asked
from layercoop_fast.search.by_cost import GROWING, RANKING, search_by_cost
from layercoop_fast.search.constraints import ConstrainedFamily
from layercoop_fast.search.measurements import Measurements
from layercoop_fast.search.methods import METHODS
from layercoop_fast.search.target import Target

N = 12


def halves(seed: int) -> tuple[Table, np.ndarray]:
    """Attention halves and MLP halves: cheap and dear in turn, losses that nearly add up."""
    rng = np.random.default_rng(seed)
    alone, pairs = rng.gamma(1.2, 0.15, N), np.triu(rng.normal(0, 0.03, (N, N)), 1)
    removed = ~all_masks(N)
    costs = np.where(np.arange(N) % 2 == 0, 1.0, 2.7) * (1 + 0.1 * rng.random(N))
    return Table(np.exp(-(removed @ alone) - np.einsum("mi,ij,mj->m", removed, pairs, removed))), costs


def best(game: Table, target: Target, allowed: ConstrainedFamily | None = None) -> float:
    masks = all_masks(N)
    fine = [target.wants(mask) and (allowed is None or allowed.check(mask) is None) for mask in masks]
    return float(game(masks[fine]).max())


@pytest.mark.parametrize("seed", range(4))
def test_coop_finds_the_best_cover(seed: int) -> None:
    game, costs = halves(seed)
    target = Target(costs, 0.3 * costs.sum())
    choice = search_by_cost("coop", game, target)
    assert game(choice.mask[None])[0] == best(game, target)
    assert choice.n_masks < 150
    json.dumps(choice.details, allow_nan=False)
    assert choice.details["path"][-1]["saved"] >= target.least


def test_coop_under_constraints() -> None:
    game, costs = halves(5)
    allowed = ConstrainedFamily(None, N, keep=[1, 4], must_go=[6])
    target = Target(costs, 0.35 * costs.sum(), allowed.must_go)
    choice = search_by_cost("coop", game, target, allowed=allowed)
    assert allowed.check(choice.mask) is None
    assert game(choice.mask[None])[0] == pytest.approx(best(game, target, allowed))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_saves_enough_or_says_that_it_cannot(name: str) -> None:
    game = Influential(10, [2, 3, 7])
    costs = np.array([1.0, 4, 1, 4, 1, 4, 1, 4, 1, 4])
    allowed = ConstrainedFamily(None, 10, keep=[2])
    target = Target(costs, 8.0)
    if name not in ("coop", *GROWING, *RANKING):
        with pytest.raises(RequestError, match=f"{name} chooses among masks of one size"):
            search_by_cost(name, game, target, allowed=allowed)
        return
    budget = 60 if name == "official" else None
    choice = search_by_cost(name, game, target, budget=budget, allowed=allowed)
    assert allowed.check(choice.mask) is None
    assert target.wants(choice.mask)
    if name in ("coop", "sleb", "ppl", "shortgpt", "taylor", "finercut"):
        assert np.flatnonzero(~choice.mask).tolist() == [3, 7]


def test_a_target_that_nothing_meets_names_the_nearest() -> None:
    game, costs = halves(0)
    costs = np.round(costs)
    with pytest.raises(RequestError, match=r"saves 23 of the players' 24: the nearest saves 18, 75.0%"):
        search_by_cost("coop", game, Target(costs, 23.0), allowed=ConstrainedFamily(None, N, keep=[1, 3]))


def test_with_equal_costs_a_cover_is_a_size() -> None:
    by_cost, by_count = Target(np.full(6, 2.0), 5.0), Target.of_count(6, 3)
    masks = all_masks(6)
    assert [by_cost.wants(mask) for mask in masks] == [by_count.wants(mask) for mask in masks]


def test_what_is_not_needed_is_put_back() -> None:
    target = Target(np.array([3.0, 1.0, 1.0, 5.0]), 5.0)
    assert target.trimmed(np.zeros(4, dtype=np.bool_), np.array([4.0, 3, 2, 1])).tolist() == [True, True, True, False]
    pinned = Target(target.costs, 5.0, np.array([True, False, False, False]))
    assert pinned.trimmed(np.array([False, False, True, False]), np.arange(4.0)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", ["coop", "sleb", "ppl", "reverse"])
def test_a_dear_player_of_high_value_goes_where_nothing_else_saves_enough(name: str) -> None:
    """Five players save 5 together and one alone 6: of a target of 5.5 only masks without that one are left."""
    rng = np.random.default_rng(0)
    alone = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 2.0])
    removed = ~all_masks(6)
    game = Table(np.exp(-(removed @ alone) - 1e-3 * rng.random(len(removed))))
    target = Target(np.array([1.0, 1, 1, 1, 1, 6]), 5.5)
    mask = search_by_cost(name, game, target).mask
    assert target.wants(mask)
    assert np.flatnonzero(~mask).tolist() == [5]


def test_partial_covers_are_ranked_by_what_they_will_have_lost() -> None:
    """What a mask does not save yet costs as much a unit as the best cover known: two masks of one size, by hand."""
    costs = np.array([4.0, 1.0, 3.0, 2.0, 5.0])
    losses = {(0, 2): 0.6, (0,): 0.2, (1,): 0.05, (4,): 0.9}

    def game(masks: np.ndarray) -> np.ndarray:
        return np.exp([-losses.get(tuple(np.flatnonzero(~mask)), 0.0) for mask in masks])

    target = Target(costs, 6.0)
    run = coop.Run(Asked(game, 5, target.size), Measurements(game, 5, 20), target, np.random.default_rng(0))
    asked = np.array([~np.isin(np.arange(5), removed) for removed in losses])
    run.measurements.measure(asked)
    assert [tuple(np.flatnonzero(~entry.mask)) for entry in run.finalists()] == [(0, 2)]
    price = 0.6 / 7  # the cover of 0 and 2 saves 7
    np.testing.assert_allclose(run._still_due(asked), [0, 2 * price, 5 * price, 1 * price], atol=1e-9)
    # 0 will have lost 0.2 + 2 · 0.6 / 7 = 0.37 and 1, which loses less alone, 0.05 + 5 · 0.6 / 7 = 0.48.
    assert [int(np.flatnonzero(~entry.mask)[0]) for entry in run._by_price(1)] == [0, 1, 4]


@pytest.mark.parametrize(
    ("costs", "least", "size"),
    [
        ([2.0, 2.0, 2.0, 2.0], 4.0, 2),
        ([2.0, 2.0, 2.0, 2.0], 4.1, 3),
        ([1.0, 3.0, 2.0, 2.0], 0.5, 1),
        ([1.0, 3.0, 2.0, 2.0], 100.0, 3),  # one stays
        ([0.1] * 10, 0.1 + 0.2, 3),  # which is 0.30000000000000004
        ([0.0, 0.0, 0.0], 1.0, 1),
    ],
)
def test_a_target_takes_so_many_players_of_mean_cost(costs: list[float], least: float, size: int) -> None:
    assert Target(np.array(costs), least).size == size
