from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_games import Additive, Counting, Family, Redundant, Spoilt, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.search.best_masks import best_masks

NO_NEIGHBOURS = Family(lambda mask: not (~mask[1:] & ~mask[:-1]).any())


def random_game(n: int, strength: float, seed: int = 0) -> PairwiseGame:
    """Pair weights of `strength` times the spread of the linear ones."""
    rng = np.random.default_rng(seed)
    return PairwiseGame(1.0, rng.normal(size=n), strength * np.triu(rng.normal(size=(n, n)), 1))


def listed(game: Any, n: int, n_remove: int, family: Family | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every mask of the size (and family), best first, and their worths."""
    masks = all_masks(n)
    masks = masks[masks.sum(axis=1) == n - n_remove]
    if family is not None:
        masks = masks[[bool(family.member(mask)) for mask in masks]]
    worths = game(masks)
    order = np.argsort(-worths)
    return masks[order], worths[order]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 13), strength=st.sampled_from([0.0, 0.1, 0.5, 2.0]), seed=st.integers(0, 999), data=st.data())
def test_pairwise_optimum_is_that_of_the_whole_list(n: int, strength: float, seed: int, data: st.DataObject) -> None:
    game = random_game(n, strength, seed)
    n_remove = data.draw(st.integers(1, n - 1))
    top = data.draw(st.sampled_from([1, 4]))
    found = best_masks(game, n_remove, top=top, restarts=1)
    masks, worths = listed(game, n, n_remove)
    assert found.proven
    assert found.gap == 0
    np.testing.assert_allclose(found.worths, worths[:top], atol=1e-12)
    np.testing.assert_array_equal(found.masks, masks[:top])


@pytest.mark.parametrize(("n_remove", "strength"), [(8, 0.2), (6, 1.0), (12, 1.5)])
def test_larger_optimum_without_help_from_local_search(n_remove: int, strength: float, monkeypatch: Any) -> None:
    """C(17, 8) masks: more than a node lists, so bounds, fixing, and branching all have their part."""
    monkeypatch.setattr("layercoop_fast.search.branch_and_bound._LISTED", 1)
    game = random_game(17, strength, 7)
    found = best_masks(game, n_remove, restarts=1, budget=1)
    assert found.proven
    assert found.n_nodes > 1
    np.testing.assert_array_equal(found.masks[0], listed(game, 17, n_remove)[0][0])


@pytest.mark.parametrize("node_limit", [1, 2, 3, 7, 30])
def test_a_bound_that_is_left_open_is_true(node_limit: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("layercoop_fast.search.branch_and_bound._LISTED", 1)
    open_ones = 0
    for seed in range(6):
        game = random_game(15, 3.0, seed)
        found = best_masks(game, 7, restarts=1, budget=1, node_limit=node_limit)
        best = listed(game, 15, 7)[1][0]
        assert found.worths[0] <= best + 1e-12
        assert found.bound >= best - 1e-9
        assert found.worths[0] + found.gap >= best - 1e-9
        assert found.n_nodes <= node_limit + 1
        open_ones += not found.proven
    assert node_limit > 3 or open_ones > 0


def test_no_time_leaves_the_root() -> None:
    found = best_masks(random_game(40, 3.0), 20, time_limit=0.0)
    assert found.n_nodes == 1
    assert not found.proven
    assert 0 < found.gap < np.inf


@pytest.mark.parametrize("n_remove", [8, 20, 60])
def test_eighty_players_of_moderate_interactions_close(n_remove: int) -> None:
    game = random_game(80, 0.05, 3)
    found = best_masks(game, n_remove)
    assert found.proven
    assert (~found.masks[0]).sum() == n_remove
    np.testing.assert_allclose(game(found.masks), found.worths, atol=1e-9)


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_pairwise_optimum_within_a_family(seed: int, top: int) -> None:
    game = random_game(12, 0.7, seed)
    found = best_masks(game, 4, top=top, allowed=NO_NEIGHBOURS)
    masks, _ = listed(game, 12, 4, NO_NEIGHBOURS)
    assert found.proven
    np.testing.assert_array_equal(found.masks, masks[:top])
    free = listed(game, 12, 4)[0][0]
    assert NO_NEIGHBOURS.check(free) is not None or (found.masks[0] == free).all()


def test_asked_for_more_than_there_are() -> None:
    found = best_masks(random_game(4, 1.0), 1, top=10)
    assert found.masks.shape == (4, 4)
    assert found.proven


@pytest.mark.parametrize("batch", [1, 7, 1024])
@pytest.mark.parametrize("n_remove", [1, 3, 7])
def test_local_search_finds_the_optimum_of_a_model_like_game(n_remove: int, batch: int) -> None:
    game = Counting(Redundant(10, [2, 3, 7]))
    found = best_masks(game, n_remove, batch=batch)
    np.testing.assert_allclose(found.worths[0], listed(game.game, 10, n_remove)[1][0])
    assert found.bound == found.gap == np.inf
    assert not found.proven
    assert found.n_nodes == 0
    asked = np.concatenate(game.calls)
    assert len(asked) == found.n_masks == len(np.unique(asked, axis=0))
    assert max(len(call) for call in game.calls) <= max(batch, 10)


def test_local_search_stays_in_the_family() -> None:
    game = Counting(Redundant(10, [7, 8, 9]))
    found = best_masks(game, 3, top=5, allowed=NO_NEIGHBOURS)
    assert all(NO_NEIGHBOURS.check(mask) is None for mask in found.masks)
    np.testing.assert_allclose(found.worths[0], listed(game.game, 10, 3, NO_NEIGHBOURS)[1][0])
    of_size = [mask for call in game.calls for mask in call if (~mask).sum() == 3]
    assert all(NO_NEIGHBOURS.check(mask) is None for mask in of_size)


@pytest.mark.parametrize("budget", [1, 5, 11, 40])
def test_the_budget_is_kept(budget: int) -> None:
    game = Counting(Redundant(10, [2, 3, 7]))
    found = best_masks(game, 3, budget=budget)
    assert game.asked == found.n_masks == budget
    assert (~found.masks[0]).sum() == 3


def test_more_restarts_are_never_worse() -> None:
    game = Table(np.random.default_rng(0).normal(size=1 << 10))  # no structure: full of local optima
    worths = [best_masks(game, 5, restarts=restarts).worths[0] for restarts in (1, 3, 30)]
    assert worths == sorted(worths)
    assert worths[0] < worths[-1]


def test_a_worth_that_is_no_number_is_never_chosen() -> None:
    game = Spoilt(Redundant(8, [0, 5]))
    found = best_masks(game, 2, top=28)
    assert np.isfinite(found.worths).all()
    assert not game.is_spoilt(found.masks).any()
    with pytest.raises(RequestError, match="worths are NaN"):
        best_masks(Table(np.full(16, np.nan)), 2)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    best_masks(random_game(30, 1.0), 12, node_limit=9, restarts=2, progress=lambda *report: told.append(report))
    assert ("restarts", 2, 2) in told
    assert told[-1] == ("nodes", 9, 9)


@pytest.mark.parametrize(
    ("n_remove", "options", "words"),
    [
        (0, {}, "1 to 5 can be removed, not 0"),
        (6, {}, "1 to 5 can be removed, not 6"),
        (2, {"top": 0}, "top must be at least 1"),
        (2, {"restarts": 0}, "restarts must be at least 1"),
        (2, {"batch": 0}, "batch must be at least 1"),
        (2, {"budget": 0}, "budget must be at least 1"),
        (4, {"allowed": NO_NEIGHBOURS}, "no allowed mask removes 4 of 6 players"),
    ],
)
def test_bad_requests_are_refused(n_remove: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        best_masks(Additive(np.ones(6)), n_remove, **options)
