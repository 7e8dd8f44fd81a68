from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_games import Family, Influential

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.search.base import METHODS, get_method
from layercoop_fast.search.constraints import ConstrainedFamily

N = 8


@st.composite
def limits(draw: st.DrawFn) -> ConstrainedFamily:
    keep = draw(st.sets(st.integers(0, N - 1), max_size=3))
    must_go = draw(st.sets(st.integers(0, N - 1), max_size=3)) - keep
    inner = draw(st.sampled_from([None, Family(lambda mask: mask[2] or mask[5])]))
    stages = draw(st.sampled_from([1, 2, 3, 4]))
    return ConstrainedFamily(inner, N, keep=sorted(keep), must_go=sorted(must_go), stages=stages)


@given(limits(), st.integers(1, N - 1), st.integers(0, 2**32 - 1))
def test_the_best_is_the_cheapest_of_all_that_pass(constraints: ConstrainedFamily, n_kept: int, seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=N)
    masks = all_masks(N)
    members = [mask for mask in masks[masks.sum(axis=1) == n_kept] if constraints.check(mask) is None]
    best = constraints.best(costs, n_kept)
    if not members:
        assert best is None
        return
    assert best is not None
    assert constraints.check(best) is None
    assert costs[~best].sum() == pytest.approx(min(costs[~mask].sum() for mask in members))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_obeys(name: str) -> None:
    """The dispensable players must stay, one that matters must go, and both stages keep the same number."""
    game = Influential(10, [2, 3, 7])
    constraints = ConstrainedFamily(None, 10, keep=[2, 3], must_go=[4], stages=2)
    budget = {"official": 60, "sleb": 100, "evopress": 60}.get(name)
    mask = get_method(name)(game, 4, seed=1, budget=budget, allowed=constraints).mask
    assert constraints.check(mask) is None
    assert mask.sum() == 6


@pytest.mark.parametrize(
    ("asked", "n_kept", "message"),
    [
        ({"keep": [0, 1, 2, 3, 4, 5]}, 5, "no 3 of 8 players can go: 6 must stay. 1 or 2 can"),
        ({"must_go": [1, 2, 3]}, 7, "no 1 of 8 players can go: 3 must go. 3 or 4 can"),
        ({"stages": 4}, 5, "no 3 of 8 players can go: 4 stages cannot keep 5 in equal parts. 4 can"),
        ({"stages": 2, "keep": [0, 1, 2]}, 4, "stage 0 must keep 3 players, and every stage keeps 2 at most. 2 can"),
    ],
)
def test_a_size_that_none_has(asked: dict[str, object], n_kept: int, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        ConstrainedFamily(None, N, **asked).check_size(n_kept)  # type: ignore[arg-type]


def test_contradictions() -> None:
    with pytest.raises(RequestError, match="players 1, 2 must stay and must go: leave them out of one"):
        ConstrainedFamily(None, N, keep=[1, 2, 3], must_go=[1, 2])
    with pytest.raises(RequestError, match="player 8 does not exist: the players are 0 to 7"):
        ConstrainedFamily(None, N, keep=[8])
    with pytest.raises(RequestError, match="8 players can be split into 1 to 8 stages, not 9"):
        ConstrainedFamily(None, N, stages=9)
    with pytest.raises(RequestError, match="one has to stay"):
        ConstrainedFamily(None, N, must_go=range(N))
