"""All masks of a network at once, against the definitions over all masks in float64."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import SPIKES, magnitude, random_networks, spiked

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.reference.networks import output, predict_logits_reference, predict_reference
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.shapley.enumeration import Enumerated, EnumerationInterrupted, enumerate_masks
from layercoop_fast.shapley.exact import exact_shapley

ISAS = _C.isa_available()

# Of f's range: what all results of the enumeration may be off.
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def restore_core() -> Iterator[None]:
    """Puts back what tests change, and keeps torch to one thread: its operations are small here."""
    isa, threads, torch_threads = _C.isa(), _C.num_threads(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    _C.set_isa(isa)
    _C.set_num_threads(threads)
    torch.set_num_threads(torch_threads)


@dataclass
class BruteForce:
    """Everything about one network from all 2ⁿ values, by definition."""

    masks: Masks
    values: Floats
    logits: Floats

    @classmethod
    def of(cls, networks: Networks) -> BruteForce:
        masks = all_masks(networks.n_players)
        logits = predict_logits_reference(networks, masks)
        return cls(masks, output(networks, logits).mean(axis=1), logits.mean(axis=1))

    @property
    def n(self) -> int:
        return self.masks.shape[1]

    @property
    def sizes(self) -> np.ndarray:
        return self.masks.sum(axis=1)

    def mean_by_size(self, rows: np.ndarray, changes: Floats, n_sizes: int) -> Floats:
        return np.bincount(self.sizes[rows], changes, n_sizes) / np.bincount(self.sizes[rows], minlength=n_sizes)

    def by_size(self) -> Floats:
        rows, f = np.arange(len(self.masks)), self.values
        result = np.empty((self.n, self.n))
        for i in range(self.n):
            without = rows[~self.masks[:, i]]
            result[i] = self.mean_by_size(without, f[without | 1 << i] - f[without], self.n)
        return result

    def pairs_by_size(self) -> Floats:
        result = np.zeros((self.n, self.n, self.n - 1))
        for j in range(self.n):
            for i in range(j):
                result[i, j] = result[j, i] = self.pair_by_size(i, j)
        return result

    def pair_by_size(self, i: int, j: int) -> Floats:
        m, f = np.flatnonzero(~self.masks[:, i] & ~self.masks[:, j]), self.values
        change = f[m | 1 << i | 1 << j] - f[m | 1 << i] - f[m | 1 << j] + f[m]
        return self.mean_by_size(m, change, self.n - 1)

    def best_scores(self, size: int, top: int) -> Floats:
        return -np.sort(-self.logits[self.sizes == size])[:top]


def assert_equals_brute_force(networks: Networks, unit: float | None = None, top: int = 7, pairs: bool = True) -> None:
    exact = BruteForce.of(networks)
    found = enumerate_masks(networks, interactions=True, top=top)
    atol = TOLERANCE * (np.ptp(exact.values) if unit is None else unit)
    np.testing.assert_allclose(found.by_size, exact.by_size(), rtol=0, atol=atol)
    means = exact.mean_by_size(np.arange(len(exact.masks)), exact.values, exact.n + 1)
    np.testing.assert_allclose(found.means, means, rtol=0, atol=atol)
    variances = [exact.values[exact.sizes == size].var() for size in range(exact.n + 1)]
    np.testing.assert_allclose(np.sqrt(found.variances), np.sqrt(variances), rtol=1e-3, atol=10 * atol)
    if exact.n > 1 and pairs:
        np.testing.assert_allclose(found.pairs_by_size, exact.pairs_by_size(), rtol=0, atol=atol)
    assert_best(found, networks, exact, top)


def assert_best(found: Enumerated, networks: Networks, exact: BruteForce, top: int) -> None:
    assert len(found.best) == exact.n + 1
    for size, best in enumerate(found.best):
        np.testing.assert_allclose(best.scores, exact.best_scores(size, top), rtol=1e-12, atol=1e-12)
        assert (best.masks.sum(axis=1) == size).all()
        assert len(np.unique(best.masks, axis=0)) == len(best.masks) == min(top, comb(exact.n, size))
        logits = predict_logits_reference(networks, best.masks)
        np.testing.assert_allclose(best.scores, logits.mean(axis=1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(best.worths, predict_reference(networks, best.masks).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("n", "hidden", "n_networks"),
    [(1, 1, 1), (1, 5, 2), (2, 3, 1), (5, 8, 1), (6, 17, 1), (8, 16, 2), (9, 31, 1), (13, 20, 3), (14, 9, 1)],
)
def test_few_players(isa: str, n: int, hidden: int, n_networks: int) -> None:
    _C.set_isa(isa)
    assert_equals_brute_force(random_networks(n, hidden, n_networks))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [15, 16, 17])
def test_around_sixteen_players(isa: str, n: int) -> None:
    _C.set_isa(isa)
    assert_equals_brute_force(random_networks(n, 2 * n + 1), pairs=n == 15)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("out", ["sigmoid", "linear"])
@pytest.mark.parametrize("activation", ["celu", "relu", "gelu", "tanh"])
def test_activations(isa: str, activation: str, out: str) -> None:
    _C.set_isa(isa)
    for scale in (0.3, 1.0):
        networks = random_networks(11, 13, 2, activation=activation, output=out, scale=scale)  # type: ignore[arg-type]
        assert_equals_brute_force(networks)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SPIKES)
def test_no_overflow_and_no_infinity_times_zero(isa: str, name: str) -> None:
    _C.set_isa(isa)
    networks = spiked(name)
    assert_equals_brute_force(networks, unit=magnitude(networks))


@pytest.mark.slow
def test_twenty_players() -> None:
    """Four steps of the core, so that players of its outermost loop are among them."""
    exact = BruteForce.of(networks := random_networks(20, 12))
    found = enumerate_masks(networks, interactions=True, top=100)
    atol = TOLERANCE * np.ptp(exact.values)
    np.testing.assert_allclose(found.by_size, exact.by_size(), rtol=0, atol=atol)
    # One pair of every two loops of the core.
    for i, j in [(1, 3), (2, 7), (4, 12), (0, 19), (5, 9), (6, 11), (8, 18), (10, 16), (17, 19), (18, 19)]:
        np.testing.assert_allclose(found.pairs_by_size[i, j], exact.pair_by_size(i, j), rtol=0, atol=atol)
    assert_best(found, networks, exact, 100)


@pytest.mark.parametrize("n", [31, 32, 33, 36])
def test_the_first_masks_of_many_players(n: int) -> None:
    networks = random_networks(n, 6, output="linear")
    core = _C.Enumeration(networks, np.zeros(n + 1), pairs=True, top=5)
    core.run(2)
    n_seen = core.n_done * (2**n // core.n_tasks)
    assert (core.n_done, n_seen) == (2, 1 << 19)
    masks = np.zeros((n_seen, n), dtype=bool)
    masks[:, :19] = all_masks(19) if n < 20 else (np.arange(n_seen)[:, None] >> np.arange(19)) & 1
    sizes, values = masks.sum(axis=1), predict_reference(networks, masks).mean(axis=1)
    np.testing.assert_array_equal(core.counts, np.bincount(sizes, minlength=n + 1))
    scale = np.abs(values).max() * np.maximum(core.counts, 1)
    np.testing.assert_allclose(core.sizes / scale, np.bincount(sizes, values, n + 1) / scale, rtol=0, atol=1e-6)
    for i in (0, 4, 5, 9, 10, 17, 18, n - 1):
        expected = np.bincount(sizes, values * masks[:, i], n + 1)
        np.testing.assert_allclose(core.players[i] / scale, expected / scale, rtol=0, atol=1e-6)
        for j in (3, 7, 12, 18):
            if i < j:
                expected = np.bincount(sizes, values * (masks[:, i] & masks[:, j]), n + 1)
                np.testing.assert_allclose(core.pairs[i, j] / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_efficiency_at_thirty_players() -> None:
    networks = random_networks(30, 8)
    ends = predict_reference(networks, np.array([[False] * 30, [True] * 30])).mean(axis=1)
    found = enumerate_masks(networks)
    values = predict_reference(networks, np.random.default_rng(0).random((10_000, 30)) < 0.5)
    assert abs(found.shapley().sum() - (ends[1] - ends[0])) < TOLERANCE * np.ptp(values)


def test_results_do_not_depend_on_threads_nor_on_where_steps_end() -> None:
    networks = random_networks(20, 12, 2)
    shifts = np.full(21, 0.5)

    def run(threads: int, step: int) -> list[np.ndarray]:
        _C.set_num_threads(threads)
        core = _C.Enumeration(networks, shifts, pairs=True, top=20, costs=np.arange(20.0), budget=60.0)
        while core.n_done < core.n_tasks:
            core.run(step)
        best = [array for size in range(21) for array in core.best(size)]
        assert core.pairs is not None
        return [core.sizes, core.squares, core.players, core.pairs, np.array(core.affordable), *best]

    expected = run(1, 100)
    for threads, step in ((2, 100), (5, 1), (1, 3)):
        for one, other in zip(expected, run(threads, step), strict=True):
            np.testing.assert_array_equal(one, other)


def test_values_close_to_one_keep_their_digits() -> None:
    """The range of f is 1e-6 or so, next to 1, where float32 has steps of 6e-8."""
    networks = random_networks(9, 18)
    networks = replace(networks, output_bias=np.array([14.0], dtype=np.float32))
    assert np.ptp(BruteForce.of(networks).values) < 1e-5
    assert_equals_brute_force(networks)


def networks_of(seed: int, n: int, n_networks: int = 1) -> Networks:
    return random_networks(n, 7, n_networks, output="linear", seed=seed, scale=1.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 9))
def test_axioms(seed: int, n: int) -> None:
    networks = networks_of(seed, n)
    w = networks.hidden_weight.copy()
    w[:, :, 0] = 0
    w[:, :, -1] = w[:, :, -2]
    networks = replace(networks, hidden_weight=w)
    found = enumerate_masks(networks, interactions=True)
    atol = TOLERANCE * magnitude(networks)
    for values in (found.shapley(), found.banzhaf(), found.beta_shapley(4, 1), found.at_sizes([0, n - 1])):
        np.testing.assert_allclose(values[0], 0, atol=atol, err_msg="null player")
        if n > 2:
            np.testing.assert_allclose(values[-1], values[-2], atol=atol, err_msg="symmetry")
    assert np.abs(found.sii()[0]).max() <= atol, "null player"
    f = predict_reference(networks, np.array([[False] * n, [True] * n])).mean(axis=1)
    np.testing.assert_allclose(found.shapley().sum(), f[1] - f[0], atol=atol, err_msg="efficiency")
    alone, pairs = found.k_sii()
    np.testing.assert_allclose(alone.sum() + np.triu(pairs, 1).sum(), f[1] - f[0], atol=atol, err_msg="efficiency")


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9))
def test_the_ensemble_is_the_mean_of_its_networks(seed: int, n: int) -> None:
    """Linearity."""
    networks = networks_of(seed, n, 2)
    arrays = (networks.hidden_weight, networks.hidden_bias, networks.output_weight, networks.output_bias)
    each = [enumerate_masks(Networks(*(a[e : e + 1] for a in arrays), output="linear")) for e in range(2)]
    together = enumerate_masks(networks)
    expected = (each[0].by_size + each[1].by_size) / 2
    np.testing.assert_allclose(together.by_size, expected, rtol=0, atol=TOLERANCE * magnitude(networks))


def test_indices_by_their_definitions() -> None:
    networks = random_networks(9, 15, 2)
    exact, found = BruteForce.of(networks), enumerate_masks(networks, interactions=True)
    n, d, p = 9, exact.by_size(), exact.pairs_by_size()
    atol = TOLERANCE * np.ptp(exact.values)

    def game(masks: Masks) -> Floats:
        return predict_reference(networks, masks).mean(axis=1)

    shapley = exact_shapley(game, 9).values
    np.testing.assert_allclose(found.shapley(), shapley, rtol=0, atol=atol)
    np.testing.assert_allclose(found.beta_shapley(1, 1), shapley, rtol=0, atol=atol)
    rows = np.arange(1 << n)
    banzhaf = [
        (exact.values[rows[exact.masks[:, i]]] - exact.values[rows[exact.masks[:, i]] ^ 1 << i]).mean()
        for i in range(n)
    ]
    np.testing.assert_allclose(found.banzhaf(), banzhaf, rtol=0, atol=atol)
    np.testing.assert_allclose(found.at_sizes([3, 5]), (d[:, 3] + d[:, 5]) / 2, rtol=0, atol=atol)
    # Beta(2, 1): a random share of the others has joined, of density 2(1 − t): sizes weigh ∝ (n − k), by hand.
    weights = np.arange(n, 0, -1.0)
    np.testing.assert_allclose(found.beta_shapley(2, 1), d @ (weights / weights.sum()), rtol=0, atol=atol)
    np.testing.assert_allclose(found.sii(), p.mean(axis=2), rtol=0, atol=atol)
    alone, pairs = found.k_sii()
    np.testing.assert_allclose(alone, shapley - p.mean(axis=2).sum(axis=1) / 2, rtol=0, atol=5 * atol)
    np.testing.assert_array_equal(pairs, found.sii())


def test_masks_are_ranked_where_the_sigmoid_ties() -> None:
    networks = random_networks(10, 20)
    networks = replace(networks, output_bias=np.array([-900.0], dtype=np.float32))
    exact = BruteForce.of(networks)
    assert (exact.values == 0).all()
    assert_best(enumerate_masks(networks, top=3), networks, exact, 3)


def test_equal_scores_give_as_many_masks_as_asked() -> None:
    networks = spiked("no output weights")
    found = enumerate_masks(networks, top=50)
    assert_best(found, networks, BruteForce.of(networks), 50)


@pytest.mark.parametrize("isa", ISAS)
def test_best_mask_within_a_budget(isa: str) -> None:
    _C.set_isa(isa)
    rng = np.random.default_rng(1)
    for n in (1, 4, 8, 12):
        networks, costs = random_networks(n, 2 * n, 2), rng.random(n) + 0.1
        exact = BruteForce.of(networks)
        prices = exact.masks @ costs
        for budget in (0.0, float(costs.sum()) / 2, float(costs.sum()) + 1):
            best = enumerate_masks(networks, costs=costs, budget=budget).within_budget
            assert best is not None
            assert (best.masks @ costs <= budget + 1e-12).all()
            np.testing.assert_allclose(best.scores, [exact.logits[prices <= budget].max()], rtol=1e-6, atol=1e-6)
    # A budget that a mask meets to the last digit, and costs that are no sums of powers of two.
    networks, costs = random_networks(6, 9), np.full(6, 0.1)
    best = enumerate_masks(networks, costs=costs, budget=0.1).within_budget
    assert best is not None
    assert best.masks.sum() <= 1


def test_a_constraint_that_no_mask_satisfies() -> None:
    networks = random_networks(6, 9)
    with pytest.raises(RequestError, match="no mask is within the budget of -1: the cheapest costs 0"):
        enumerate_masks(networks, costs=np.ones(6), budget=-1.0)
    with pytest.raises(RequestError, match="the cheapest costs -3"):
        enumerate_masks(networks, costs=[-1.0, -2.0, 1.0, 1.0, 1.0, 1.0], budget=-4.0)
    best = enumerate_masks(networks, costs=[-1.0, -2.0, 1.0, 1.0, 1.0, 1.0], budget=-3.0).within_budget
    assert best is not None
    assert best.masks.tolist() == [[True, True, False, False, False, False]]


def test_ctrl_c_says_how_far_it_came() -> None:
    networks = random_networks(25, 1)
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(EnumerationInterrupted, match="interrupted after 16,777,216 of 33,554,432 masks") as raised:
        enumerate_masks(networks, top=4, progress=progress)
    assert told == [("masks", 1 << 24, 1 << 25)]
    assert isinstance(raised.value, KeyboardInterrupt)
    # The masks seen are those without the last player.
    assert (raised.value.done, raised.value.total) == (1 << 24, 1 << 25)
    np.testing.assert_array_equal(raised.value.counts, [comb(24, k) for k in range(26)])
    assert len(raised.value.best) == 26
    assert not any(best.masks[:, -1].any() for best in raised.value.best)


def test_progress_reaches_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    enumerate_masks(random_networks(7, 3), progress=lambda *report: told.append(report))
    assert told == [("masks", 128, 128)]


def test_refusals() -> None:
    networks = random_networks(6, 9)
    for arguments, message in [
        ({"top": -1}, "top must be 0 to 10000"),
        ({"top": 10_001}, "top must be 0 to 10000"),
        ({"costs": np.ones(6)}, "give both or neither"),
        ({"budget": 1.0}, "give both or neither"),
        ({"costs": np.ones(5), "budget": 1.0}, r"one number a player, \[6\], not of shape \[5\]"),
        ({"costs": ["a"] * 6, "budget": 1.0}, "one number a player: could not convert"),
        ({"costs": np.full(6, np.nan), "budget": 1.0}, "finite"),
    ]:
        with pytest.raises(RequestError, match=message):
            enumerate_masks(networks, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="37 players have too many masks"):
        enumerate_masks(random_networks(37, 2))
    found = enumerate_masks(networks)
    assert (found.best, found.within_budget, found.pairs_by_size) == ([], None, None)
    with pytest.raises(RequestError, match="interactions=True"):
        found.sii()
    with pytest.raises(RequestError, match=r"sizes must be in 0\.\.5"):
        found.at_sizes([6])
    with pytest.raises(RequestError, match="must be positive"):
        found.beta_shapley(0, 1)
