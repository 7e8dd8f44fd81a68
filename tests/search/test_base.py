from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_games import Additive, Family, Influential, Redundant

from layercoop_fast.errors import RequestError
from layercoop_fast.search.base import (
    METHODS,
    check_n_remove,
    finite_or_none,
    get_method,
    least_valuable,
    worst_last,
)

NO_NEIGHBOURS = Family(lambda mask: not (~mask[1:] & ~mask[:-1]).any())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_the_one_call_form(name: str) -> None:
    game = Influential(10, [2, 3, 7])
    told: list[tuple[str, int, int]] = []
    budget = {"official": 60, "sleb": 100, "evopress": 60}.get(name)
    choice = get_method(name)(game, 3, seed=1, budget=budget, progress=lambda *report: told.append(report))
    assert choice.mask.dtype == np.bool_
    assert choice.mask.shape == (10,)
    assert choice.mask.sum() == 7
    assert choice.method == name
    assert choice.scores is None or (choice.scores.dtype == np.float64 and choice.scores.shape == (10,))
    json.dumps(choice.details, allow_nan=False)
    assert all(0 < done <= total for _, done, total in told)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_obeys_what_is_allowed(name: str) -> None:
    """The three dispensable players are neighbours, which the family forbids."""
    game = Influential(10, [7, 8, 9])
    for seed in range(3):
        choice = get_method(name)(game, 3, seed=seed, budget=120, allowed=NO_NEIGHBOURS)
        assert choice.mask.sum() == 7
        assert NO_NEIGHBOURS.check(choice.mask) is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_when_nothing_is_allowed(name: str) -> None:
    with pytest.raises(RequestError, match="no allowed mask removes 6 of 10 players"):
        get_method(name)(Influential(10, [2, 3, 7]), 6, budget=210, allowed=NO_NEIGHBOURS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n_remove", [-1, 0, 10, 11])
def test_every_method_refuses_sizes_out_of_range(name: str, n_remove: int) -> None:
    with pytest.raises(RequestError, match=f"1 to 9 can be removed, not {n_remove}"):
        get_method(name)(Influential(10, [2, 3, 7]), n_remove)


@pytest.mark.parametrize(("name", "n_masks"), [("ppl", 10), ("sleb", 27), ("finercut", 27), ("exhaustive", 120)])
def test_a_method_that_cannot_do_with_the_budget_says_what_it_asks(name: str, n_masks: int) -> None:
    with pytest.raises(
        RequestError, match=f"{name} measures {n_masks} masks to remove 3 of 10 players: the budget is 9"
    ):
        get_method(name)(Influential(10, [2, 3, 7]), 3, budget=9)
    assert get_method(name)(Influential(10, [2, 3, 7]), 3, budget=n_masks).n_masks == n_masks


@pytest.mark.parametrize("name", ["shortgpt", "cka", "zigzag", "angular", "taylor", "finercut"])
def test_a_rule_that_needs_a_model_says_so(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} needs a game that offers .* a game on a model"):
        get_method(name)(Redundant(10, [2, 3, 7]), 3)


@pytest.mark.parametrize("name", ["official", "random", "evopress"])
def test_a_budget_below_one_mask_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="at least 1 mask"):
        get_method(name)(Redundant(10, [2]), 1, budget=0)


@pytest.mark.parametrize(
    ("name", "nearest"), [("oficial", "official"), ("short-gpt", "shortgpt"), ("SLEB", "sleb"), ("reversed", "reverse")]
)
def test_an_unknown_method_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(RequestError, match=f"unknown method '{name}': did you mean '{nearest}'") as caught:
        get_method(name)
    assert all(method in str(caught.value) for method in METHODS)


def test_an_unlikely_method_suggests_nothing_but_the_list() -> None:
    with pytest.raises(RequestError, match="unknown method 'xyz': The methods are coop, "):
        get_method("xyz")


def test_sizes_in_range_pass() -> None:
    check_n_remove(10, 1)
    check_n_remove(10, 9)


def test_least_valuable_breaks_ties_by_index() -> None:
    assert np.flatnonzero(~least_valuable(np.array([1.0, 0.0, 1.0, 0.0, 1.0]), 3, None)).tolist() == [0, 1, 3]


@given(scores=st.lists(st.integers(-5, 5), min_size=2, max_size=8), data=st.data())
def test_least_valuable_is_the_cheapest_of_the_family(scores: list[int], data: st.DataObject) -> None:
    n = len(scores)
    n_remove = data.draw(st.integers(1, n - 1))
    costs = np.array(scores, dtype=np.float64)
    best = NO_NEIGHBOURS.best(costs, n - n_remove)
    if best is None:
        with pytest.raises(RequestError):
            least_valuable(costs, n_remove, NO_NEIGHBOURS)
    else:
        mask = least_valuable(costs, n_remove, NO_NEIGHBOURS)
        assert NO_NEIGHBOURS.check(mask) is None
        assert ~mask @ costs == ~best @ costs


def test_scores_survive_the_family_that_allows_all() -> None:
    game = Additive([3.0, 1.0, 2.0])
    free = get_method("sleb")(game, 1)
    bound = get_method("sleb")(game, 1, allowed=Family(lambda mask: True))
    np.testing.assert_array_equal(free.mask, bound.mask)


def test_costs_that_are_no_numbers_come_last() -> None:
    costs = worst_last(np.array([2.0, np.nan, -1.0, np.inf, -np.inf]))
    assert costs.tolist() == [2.0, 6.0, -1.0, 6.0, -5.0]
    assert worst_last(np.array([np.nan, -np.inf])).tolist() == [1.0, -1.0]
    assert np.isfinite(worst_last(np.array([np.finfo(np.float64).max / 4, np.nan]))).all()


def test_numbers_that_json_lacks() -> None:
    assert [finite_or_none(value) for value in (0.5, np.nan, np.inf, -np.inf)] == [0.5, None, None, None]
