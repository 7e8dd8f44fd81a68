from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer
from toy_games import Additive, Counting, Family, Redundant, Table

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.search import evopress, exhaustive
from layercoop_fast.texts.calibration import Calibration


def rugged(n: int, seed: int) -> Table:
    """Weights and strong pairs: single swaps alone stick at local optima now and then."""
    rng = np.random.default_rng(seed)
    masks = all_masks(n).astype(float)
    return Table(masks @ rng.normal(size=n) + np.einsum("mi,ij,mj->m", masks, rng.normal(size=(n, n)) / 3, masks))


@pytest.mark.parametrize("seed", range(5))
def test_reaches_the_optimum_of_a_small_game(seed: int) -> None:
    game = rugged(12, seed)
    truth = exhaustive.search(game, 4)
    choice = evopress.search(game, 4, seed=seed)
    assert choice.mask.tolist() == truth.mask.tolist()


@pytest.mark.parametrize("budget", [1, 3, 20, 60])
@pytest.mark.parametrize("seed", range(3))
def test_is_never_worse_than_its_start_and_asks_no_more_than_its_budget(seed: int, budget: int) -> None:
    game = Counting(rugged(12, 7))
    choice = evopress.search(game, 3, seed=seed, budget=budget)
    assert choice.details["worth"] >= choice.details["start_worth"]
    assert choice.details["worth"] == game.game(choice.mask[None])[0]
    distinct = {mask.tobytes() for call in game.calls for mask in call}
    assert len(distinct) == choice.n_masks <= budget
    assert all(((~call).sum(axis=1) == 3).all() for call in game.calls)


def test_a_known_neighbourhood_ends_the_search() -> None:
    game = Counting(Additive([3.0, 1.0, 2.0]))
    choice = evopress.search(game, 1, budget=10**6)
    assert choice.mask.tolist() == [True, False, True]
    assert choice.n_masks == 3


def test_mutants_are_of_the_family() -> None:
    game = Counting(Redundant(10, [2, 4, 8]))
    even = Family(lambda mask: bool((~mask[::2]).sum() == (~mask).sum()))
    choice = evopress.search(game, 3, budget=60, allowed=even)
    assert np.flatnonzero(~choice.mask).tolist() == [2, 4, 8]
    assert all(even.check(mask) is None for call in game.calls for mask in call)


def test_a_worth_that_is_no_number_never_wins() -> None:
    worths = np.full(1 << 6, np.nan)
    worths[0b001111] = -5.0
    assert evopress.search(Table(worths), 2).mask.tolist() == [True, True, True, True, False, False]


def test_a_model_is_judged_by_divergence_and_raced_on_its_windows() -> None:
    ids = torch.randint(3, 256, (10, 8), generator=torch.Generator().manual_seed(1))
    checkpoint = Checkpoint(FAMILIES["llama"](n_layers=8), tiny_tokenizer(), "llama")
    game = ModelGame(checkpoint, Calibration(ids, "t"))
    choice = evopress.search(game, 3, seed=3, budget=45)
    assert choice.details["windows_by_stage"] == [2, 5, 10]
    assert game.evaluations.unique < choice.n_masks == 45, "some were dropped on few windows"
    masks = all_masks(8)
    divergences = -game.with_utility("kl")(masks[masks.sum(axis=1) == 5])
    # Of 56 masks; a race may drop the very best on its first windows.
    assert -choice.details["worth"] <= np.sort(divergences)[2]
    assert -choice.details["worth"] == -game.with_utility("kl")(choice.mask[None])[0]
