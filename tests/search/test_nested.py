"""Families of masks: chains on games whose every mask is known, and what a search says of them."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from toy_games import Additive, Counting, Family, Spoilt, Table

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.masks.types import Masks
from layercoop_fast.search import nested
from layercoop_fast.search.base import Asked
from layercoop_fast.search.chains import best_chain, climbed, exchanged, gains
from layercoop_fast.search.constraints import ConstrainedFamily
from layercoop_fast.search.measurements import MeasuredMask, Measurements
from layercoop_fast.surrogate.expansion import Expansion

N, REMOVE = 10, 4


def layers(seed: int, n: int = N) -> Table:
    """Like a model, and with pairs strong enough that the best mask of one size is in none of the next."""
    rng = np.random.default_rng(seed)
    alone, pairs = rng.gamma(1.2, 0.15, n), np.triu(rng.normal(0, 0.12, (n, n)), 1)
    removed = ~all_masks(n)
    return Table(np.exp(-(removed @ alone) - np.abs(np.einsum("mi,ij,mj->m", removed, pairs, removed))))


def losses(game: Table) -> dict[frozenset[int], float]:
    return {
        frozenset(np.flatnonzero(~mask).tolist()): -math.log(worth)
        for mask, worth in zip(all_masks(game.n_players), game.worths, strict=True)
    }


def best_total(game: Table, sizes: list[int], fits=lambda removed: True) -> float:  # type: ignore[no-untyped-def]
    """The least total of losses of a chain through all sizes, over every chain there is."""
    known = losses(game)
    ends = {frozenset(): 0.0}
    for size in sizes:
        of_size = [removed for removed in known if len(removed) == size and fits(removed)]
        ends = {
            removed: known[removed] + min(total for before, total in ends.items() if before <= removed)
            for removed in of_size
            if any(before <= removed for before in ends)
        }
    return min(ends.values())


def total(choice) -> float:  # type: ignore[no-untyped-def]
    return sum(step["loss"] for step in choice.details["nested"])


@pytest.mark.parametrize("seed", range(3))
def test_the_family_is_the_best_there_is(seed: int) -> None:
    game = Counting(layers(seed))
    choice = nested.search(game, REMOVE)
    steps = choice.details["nested"]
    sets = [frozenset(step["removed"]) for step in steps]
    assert [len(removed) for removed in sets] == [1, 2, 3, 4]
    assert all(small < large for small, large in itertools.pairwise(sets))
    assert sets[-1] == frozenset(np.flatnonzero(~choice.mask).tolist())
    assert total(choice) == pytest.approx(best_total(game.game, [1, 2, 3, 4]))
    known = losses(game.game)
    for step in steps:
        assert step["loss"] == pytest.approx(known[frozenset(step["removed"])])
        # The free choice is that of the size by itself: no mask of that size is better, the family's included.
        least = min(loss for removed, loss in known.items() if len(removed) == step["n_removed"])
        assert step["free_loss"] == pytest.approx(known[frozenset(step["free"])]) == pytest.approx(least)
    asked = {mask.tobytes() for call in game.calls for mask in call if not mask.all()}
    assert len(asked) == choice.n_masks == sum(part["masks"] for part in choice.details["nested_cost"].values())
    assert choice.n_masks < 250  # of 385
    json.dumps(choice.details, allow_nan=False)


def test_a_bad_family_is_exchanged_player_by_player() -> None:
    """Without the searches for single sizes: of what is known by the players alone and the worst chain."""
    game = layers(1)
    family = nested._Family(Asked(game, N, REMOVE), Measurements(game, N, 200))
    family.measurements.measure(~np.eye(N, dtype=np.bool_))
    worst = sorted(range(N), key=lambda player: losses(game)[frozenset([player])])[-REMOVE:]
    family.measurements.complete(np.array([~np.isin(np.arange(N), worst[:size]) for size in range(1, REMOVE + 1)]))
    assert family._improve() == "no family is expected to gain more than the surrogate can tell"
    assert sum(entry.loss for entry in family._best()) == pytest.approx(best_total(game, [1, 2, 3, 4]))
    assert len(family.measurements.entries) < 100  # of 385


def test_the_player_put_back_is_the_one_that_is_expected_to_cost_most() -> None:
    """Beside the players that stay removed, with whom it forms pairs: of the smaller masks that of least loss."""
    game = layers(1)
    family = nested._Family(Asked(game, N, REMOVE), Measurements(game, N, 500))
    every = all_masks(N)
    family.measurements.complete(every[np.isin((~every).sum(axis=1), [1, 2, 3])])
    fit = family.belief.fit
    alone_decides = 0
    for removed in itertools.combinations(range(N), 4):
        mask = ~np.isin(np.arange(N), removed)
        smaller = np.array([mask | (np.arange(N) == player) for player in removed])
        found = family._within(mask, 3)
        assert found is not None
        assert fit.mean(~found[None])[0] == pytest.approx(fit.mean(~smaller).min(), abs=1e-9)
        alone_decides += bool(found[max(removed, key=lambda player: fit.linear[player])])
    assert alone_decides < 200  # of 210: else pairs would have no say


def test_a_family_gives_up_a_size_for_the_others() -> None:
    """Players 0 and 1 are nearly free together and dear alone; of single players 2 is best, of three {2, 3, 4}."""
    n = 6
    removed = ~all_masks(n)
    alone = np.array([0.5, 0.5, 0.1, 0.2, 0.3, 0.9])
    worths = np.exp(-(removed @ alone) + 0.99 * (removed[:, 0] & removed[:, 1]))
    choice = nested.search(Table(worths), 3)
    assert [step["removed"] for step in choice.details["nested"]] == [[0], [0, 1], [0, 1, 2]]
    assert [step["free"] for step in choice.details["nested"]] == [[2], [0, 1], [0, 1, 2]]
    assert choice.details["path"] == choice.details["nested"]


def test_constraints_hold_for_every_mask_of_the_family() -> None:
    game = layers(1)
    allowed = ConstrainedFamily(None, N, keep=[0], stages=2)  # stages keep as many each: odd sizes are not there
    choice = nested.search(game, 4, allowed=allowed)
    family = [step["removed"] for step in choice.details["nested"]]
    assert [len(removed) for removed in family] == [2, 4]
    for removed in family:
        assert allowed.check(~np.isin(np.arange(N), removed)) is None
    fits = lambda removed: allowed.check(~np.isin(np.arange(N), list(removed))) is None  # noqa: E731
    assert total(choice) == pytest.approx(best_total(game, [2, 4], fits))
    must = nested.search(game, 3, allowed=ConstrainedFamily(None, N, must_go=[7, 8]))
    assert [len(step["removed"]) for step in must.details["nested"]] == [2, 3]
    assert must.details["nested"][0]["removed"] == [7, 8]


def test_sizes_that_fit_into_no_chain_are_left_out() -> None:
    """Of two players only 0 and 1 may go together, of three only 2, 3 and 4."""
    sets: tuple[set[int], ...] = ({0, 1}, {2, 3, 4}, {2})
    choice = nested.search(layers(0), 3, allowed=Family(lambda mask: set(np.flatnonzero(~mask).tolist()) in sets))
    assert [step["removed"] for step in choice.details["nested"]] == [[2], [2, 3, 4]]


def test_the_smallest_and_the_broken() -> None:
    assert [step["removed"] for step in nested.search(layers(2, 3), 1).details["nested"]] != []
    assert len(nested.search(layers(2, 3), 2).details["nested"]) == 2
    spoilt = nested.search(Spoilt(layers(3)), 3)
    assert all(math.isfinite(step["loss"]) for step in spoilt.details["nested"])
    assert [step["n_removed"] for step in spoilt.details["nested"]][-1] == 3
    with pytest.raises(RunError, match="measured masks have losses that are not finite"):
        nested.search(Table(np.full(1 << 8, np.nan)), 3)


def test_the_budget_is_kept_and_a_family_still_comes_out() -> None:
    for budget in (14, 16, 40):
        game = Counting(layers(4))
        choice = nested.search(game, REMOVE, budget=budget)
        assert choice.n_masks <= budget
        assert [step["n_removed"] for step in choice.details["nested"]][-1] == REMOVE
    with pytest.raises(RequestError, match="a budget of 14 at least, not 13"):
        nested.search(layers(4), REMOVE, budget=13)


def test_same_seed_same_family() -> None:
    first, again = (nested.search(layers(5), 3, seed=7) for _ in range(2))
    assert first.details == again.details


def test_gains_are_those_of_the_chains() -> None:
    rng = np.random.default_rng(0)
    sets = rng.random((40, 7)) < 0.4
    fit = Expansion(sets, sets @ rng.gamma(1.0, 1.0, 7) + rng.normal(0, 0.1, 40))
    order = rng.permutation(7)
    chain = np.zeros((3, 7), dtype=np.bool_)
    for row, size in enumerate((1, 2, 4)):
        chain[row, order[:size]] = True
    expected = gains(fit, chain)
    first = np.where(chain.any(axis=0), chain.argmax(axis=0), 3)
    for a, b in itertools.product(range(7), repeat=2):
        if first[a] < first[b]:
            fall = fit.mean(chain).sum() - fit.mean(exchanged(chain, a, b)).sum()
            assert expected[a, b] == pytest.approx(fall, abs=1e-9)
        else:
            assert expected[a, b] == -np.inf
    top = climbed(fit, chain, lambda other: not other[:, 0].any())
    assert not top[:, 0].any() or np.array_equal(top, chain)
    assert fit.mean(top).sum() <= fit.mean(chain).sum()


def test_the_longest_chain_comes_before_the_cheapest() -> None:
    def entry(removed: list[int], loss: float) -> MeasuredMask:
        mask: Masks = ~np.isin(np.arange(5), removed)
        return MeasuredMask(mask, loss, np.array([loss]), True)

    sizes = [[entry([4], 0.1), entry([0], 5.0)], [], [entry([0, 1, 2], 0.5), entry([1, 2, 3], 0.1)]]
    assert [e.loss for e in best_chain(sizes)] == [5.0, 0.5]
    assert [e.loss for e in best_chain(sizes[1:])] == [0.1]


def test_values_come_out_of_the_same_worths() -> None:
    weights = np.array([2.0, 0.1, 0.5, 1.0, 0.3, 0.2, 0.9, 1.5])
    choice = nested.search(Table(Additive(weights)(all_masks(8)) - 9), 3)
    assert [step["removed"] for step in choice.details["nested"]] == [[1], [1, 5], [1, 4, 5]]
    assert choice.scores is not None
    np.testing.assert_allclose(choice.scores, weights, atol=0.05)
