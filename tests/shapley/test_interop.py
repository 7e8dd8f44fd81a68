"""What needs no shapiq runs everywhere; the rest where the extra is installed (the suite itself installs no peers)."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny
from toy_games import Additive

from layercoop_fast import ModelGame
from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.masks.types import Floats, Masks, check_masks
from layercoop_fast.shapley.enumeration import enumerate_masks
from layercoop_fast.shapley.exact import exact_shapley
from layercoop_fast.shapley.interop import from_interaction_values, single_masks, to_interaction_values
from layercoop_fast.shapley.permutation import shapley_values
from layercoop_fast.shapley.regression import kernel_shap
from layercoop_fast.shapley.values import ShapleyValues
from layercoop_fast.surrogate.surrogate import Surrogate


@pytest.fixture
def shapiq() -> Any:
    return import_module("shapiq")


class Network:
    """One hidden layer with CELU, and a sigmoid, as the surrogates are; answers what `check_masks` takes."""

    def __init__(self, n_players: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.n_players = n_players
        self.inner = rng.normal(size=(n_players, 2 * n_players)) / 2
        self.outer = rng.normal(size=2 * n_players) / 2

    def __call__(self, masks: Masks) -> Floats:
        x = check_masks(masks, self.n_players) @ self.inner
        hidden = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        worths: Floats = 1 / (1 + np.exp(-(hidden @ self.outer)))
        return worths


@pytest.fixture(scope="module")
def model_game(tmp_path_factory: pytest.TempPathFactory) -> ModelGame:
    path: Path = save_tiny(tmp_path_factory.mktemp("interop") / "model", family="llama", n_layers=5)
    return ModelGame.from_pretrained(str(path), "builtin", windows=2, tokens=16, dtype=torch.float32)


def test_a_single_mask_is_answered_like_a_row() -> None:
    game = single_masks(Additive([1.0, 2.0, 4.0]))
    masks = np.array([[True, False, True], [False, True, False]])
    assert game(masks).tolist() == [5.0, 2.0]
    assert game(masks[0]).tolist() == [5.0]


class Recorded:
    """Stands in for shapiq's class: what is said to it, and what is read from it."""

    def __init__(self, values: dict[tuple[int, ...], float], **said: Any) -> None:
        self.values = values
        for name, value in said.items():
            setattr(self, name, value)

    def get_n_order_values(self, order: int) -> Floats:
        return np.array([value for players, value in self.values.items() if len(players) == order])


def test_what_is_said_to_shapiq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapiq", SimpleNamespace(InteractionValues=Recorded))
    values = ShapleyValues(np.array([3.0, 1.0, -1.0]), np.zeros(3), 8, "exact")
    plain: Any = to_interaction_values(values, baseline=0.5)
    assert plain.values == {(0,): 3.0, (1,): 1.0, (2,): -1.0}
    assert (plain.index, plain.min_order, plain.max_order, plain.n_players) == ("SV", 1, 1, 3)
    assert (plain.estimated, plain.estimation_budget, plain.baseline_value) == (False, 8, 0.5)
    back = from_interaction_values(plain)
    assert back.values.tolist() == [3.0, 1.0, -1.0]
    assert back.stderr.tolist() == [0.0] * 3

    pairs = np.array([[9.0, 2.0, 0.0], [2.0, 9.0, -1.0], [0.0, -1.0, 9.0]])  # the diagonal is not read
    shared: Any = to_interaction_values(values, pairs=pairs)
    assert shared.values == {(0,): 2.0, (1,): 0.5, (2,): -0.5, (0, 1): 2.0, (0, 2): 0.0, (1, 2): -1.0}
    assert sum(shared.values.values()) == values.values.sum()
    assert (shared.index, shared.max_order) == ("k-SII", 2)
    assert to_interaction_values(values, pairs=pairs, index="SII").values[(0,)] == 3.0  # type: ignore[index]


def test_without_shapiq_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(RequestError, match=r"layercoop-fast\[shapiq\]"):
        to_interaction_values(exact_shapley(Additive([1.0, 2.0])))


def test_exact_values_are_those_of_the_exact_computer_at_twelve_players(shapiq: Any) -> None:
    game = Network(12)
    theirs = from_interaction_values(shapiq.ExactComputer(game, n_players=12)("SV", 1))
    np.testing.assert_allclose(exact_shapley(game).values, theirs.values, atol=1e-10)
    np.testing.assert_allclose(kernel_shap(game, budget=1 << 12).values, theirs.values, atol=1e-9)
    assert (theirs.stderr == 0).all()
    assert theirs.method == "shapiq SV"


def test_a_surrogate_played_exhaustively_is_what_the_exact_computer_says(shapiq: Any) -> None:
    masks = stratified_masks(12, 300, strata=range(13))
    surrogate = Surrogate.fit(masks, np.exp(Network(12)(masks) - 1), ensemble=2)
    game = surrogate.link_game
    theirs = shapiq.ExactComputer(game, n_players=12)
    ours = enumerate_masks(surrogate, interactions=True)
    spread = np.ptp(game(all_masks(12)))
    np.testing.assert_allclose(ours.shapley(), theirs("SV", 1).get_n_order_values(1), atol=1e-6 * spread)
    np.testing.assert_allclose(ours.sii(), theirs("SII", 2).get_n_order_values(2), atol=1e-5 * spread)
    for approximator in (shapiq.KernelSHAP(12, random_state=0), shapiq.PermutationSamplingSV(12, random_state=0)):
        found = approximator.approximate(2000, single_masks(game)).get_n_order_values(1)
        np.testing.assert_allclose(found, ours.shapley(), atol=0.1 * spread)


def test_exact_values_of_a_model_are_those_of_the_exact_computer(shapiq: Any, model_game: ModelGame) -> None:
    theirs = shapiq.ExactComputer(model_game, n_players=5)("SV", 1)
    np.testing.assert_allclose(exact_shapley(model_game).values, theirs.get_n_order_values(1), atol=1e-12)


@pytest.mark.parametrize("pairing", [True, False])
def test_their_kernel_shap_plays_our_games_as_they_are(shapiq: Any, model_game: ModelGame, pairing: bool) -> None:
    for game, n in ((Network(8), 8), (model_game, 5)):
        exact = exact_shapley(game)
        theirs = shapiq.KernelSHAP(n, pairing_trick=pairing, random_state=1).approximate(2**n, game)
        np.testing.assert_allclose(from_interaction_values(theirs).values, exact.values, atol=1e-4)


def test_their_permutations_play_our_games(shapiq: Any, model_game: ModelGame) -> None:
    for game, n, budget in (
        (Network(9), 9, 2000),
        (PairwiseGame(0.0, np.ones(3), np.eye(3, k=1)), 3, 40),
        (model_game, 5, 1000),
    ):
        theirs = shapiq.PermutationSamplingSV(n, random_state=1).approximate(budget, game)
        found = from_interaction_values(theirs)
        ours = shapley_values(game, n_permutations=2 * (budget // (2 * n)), antithetic=False)
        # Theirs says no standard error; at equal masks it is about ours.
        assert (np.abs(found.values - exact_shapley(game).values) <= 5 * ours.stderr + 1e-9).all()
        assert np.isnan(found.stderr).all()


def test_values_go_there_and_back(shapiq: Any) -> None:
    values = shapley_values(Additive([1.0, -2.0, 0.5]), n_permutations=4)
    there = to_interaction_values(values, baseline=0.25)
    assert (there.index, there.max_order, there.n_players, there.estimated) == ("SV", 1, 3, True)
    assert there.baseline_value == 0.25
    assert there[(1,)] == -2.0
    back = from_interaction_values(there)
    np.testing.assert_allclose(back.values, values.values)
    assert back.n_evaluations == values.n_evaluations


@pytest.mark.parametrize("index", ["SII", "k-SII"])
def test_pairs_go_there_as_the_exact_computer_has_them(shapiq: Any, index: Any) -> None:
    """In a pairwise game the Shapley interaction index of two players is their weight."""
    rng = np.random.default_rng(1)
    game = PairwiseGame(0.5, rng.normal(size=6), np.triu(rng.normal(size=(6, 6)), 1))
    ours = to_interaction_values(exact_shapley(game), pairs=game.coupling, index=index, baseline=0.5)
    theirs = shapiq.ExactComputer(game, n_players=6)(index, 2)
    for order in (1, 2):
        np.testing.assert_allclose(ours.get_n_order_values(order), theirs.get_n_order_values(order), atol=1e-9)
    assert not ours.estimated
    assert ours.index == theirs.index


def test_what_has_no_form_there_is_refused(shapiq: Any) -> None:
    values = ShapleyValues(np.zeros(3), np.zeros(3), 8, "exact")
    for pairs in (np.zeros((2, 2)), np.triu(np.ones((3, 3)))):
        with pytest.raises(RequestError, match="symmetric array"):
            to_interaction_values(values, pairs=pairs)
    k_sii = to_interaction_values(values, pairs=np.zeros((3, 3)))
    with pytest.raises(RequestError, match="k-SII holds no Shapley values at order 1"):
        from_interaction_values(k_sii)
