from __future__ import annotations

import itertools
import json
from functools import cache

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer
from toy_games import Additive, Counting, Family, Redundant, Spoilt, Table

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.search import coop, ppl
from layercoop_fast.search.base import Asked, get_method
from layercoop_fast.search.constraints import ConstrainedFamily
from layercoop_fast.search.measurements import Measurements
from layercoop_fast.search.methods import METHODS
from layercoop_fast.search.target import Target
from layercoop_fast.surrogate.expansion import Expansion
from layercoop_fast.texts.calibration import Calibration

N, REMOVE = 12, 4


def layers(seed: int, n: int = N) -> Table:
    """Like a model: log worths that add up but for pairs, neighbours above all, and a few players without which no."""
    rng = np.random.default_rng(seed)
    alone, pairs = rng.gamma(1.2, 0.15, n), np.triu(rng.normal(0, 0.03, (n, n)), 1)
    alone[[0, n - 1]] += 2
    pairs[np.arange(n - 1), np.arange(1, n)] += rng.normal(0.08, 0.05, n - 1)
    removed = ~all_masks(n)
    return Table(np.exp(-(removed @ alone) - np.einsum("mi,ij,mj->m", removed, pairs, removed)))


def optimum(game: Table, n_remove: int) -> float:
    masks = all_masks(game.n_players)
    return float(game(masks[(~masks).sum(axis=1) == n_remove]).max())


@pytest.mark.parametrize("seed", range(6))
def test_finds_the_optimum_at_a_fraction_of_the_masks(seed: int) -> None:
    game = Counting(layers(seed))
    choice = coop.search(game, REMOVE)
    assert game.game(choice.mask[None])[0] == optimum(game.game, REMOVE)
    assert choice.n_masks < 120  # of 495 with four removed
    asked = {mask.tobytes() for call in game.calls for mask in call if not mask.all()}
    assert len(asked) == choice.n_masks


@cache
def model_game() -> ModelGame:
    ids = torch.randint(3, 256, (10, 12), generator=torch.Generator().manual_seed(1))
    return ModelGame(Checkpoint(FAMILIES["llama"](n_layers=N), tiny_tokenizer(), "llama"), Calibration(ids, "t"))


def test_it_begins_with_what_the_one_pass_methods_choose() -> None:
    game = model_game().view(apart=True, stored=False)
    asked = Asked(game, N, REMOVE)
    run = coop.Run(asked, Measurements(game, N, 100), Target.of_count(N, REMOVE), np.random.default_rng(0))
    run.seeds()
    chosen = {name: np.flatnonzero(~mask).tolist() for name, mask in run._seeds}
    assert list(chosen) == ["ppl", "shortgpt", "angular"]
    # Not ppl: where players race each other on few windows, it goes by what those say.
    expected = {name: get_method(name)(game, REMOVE).mask for name in ("shortgpt", "angular")}
    for name, mask in expected.items():
        assert chosen[name] == np.flatnonzero(~mask).tolist()
    for mask in [*~np.eye(N, dtype=np.bool_), *expected.values()]:
        assert run.measurements.knows(mask)


@cache
def best_of_coop() -> float:
    return float(model_game()(coop.search(model_game(), REMOVE).mask[None])[0])


NEEDING = {"zigzag": pytest.mark.needs("dionysus")}


@pytest.mark.parametrize("method", [pytest.param(name, marks=NEEDING.get(name, ())) for name in METHODS])
def test_no_method_leaves_a_better_model(method: str) -> None:
    game = model_game()
    budget = 100 if method in ("official", "evopress") else None
    assert best_of_coop() >= game(get_method(method)(game, REMOVE, budget=budget).mask[None])[0]


def test_groups_of_layers_that_do_not_follow_each_other() -> None:
    game = model_game()
    groups = [[0], [1, 5], [2], [3, 9], [4], [6, 7], [8]]
    played = ModelGame(game.checkpoint, game.calibration, skeleton=game.masked.skeleton, players=groups)
    masks = all_masks(7)
    worths = played(masks[(~masks).sum(axis=1) == 2])
    assert played(coop.search(played, 2).mask[None])[0] == worths.max()


def test_masks_that_fall_behind_are_dropped_on_few_windows() -> None:
    choice = coop.search(model_game(), 3, budget=60)
    assert choice.details["measured_in_full"] < choice.n_masks <= 60
    worth = model_game()(choice.mask[None])[0]
    assert choice.details["loss"] == pytest.approx(-np.log(worth), abs=1e-9)


def test_the_sizes_on_the_way_and_how_sure_the_choice_is() -> None:
    details = coop.search(model_game(), 3).details
    assert [step["n_removed"] for step in details["path"]] == [1, 2, 3]
    assert [len(step["removed"]) for step in details["path"]] == [1, 2, 3]
    assert details["path"][-1]["loss"] == details["loss"] <= details["runner_up_loss"]
    assert 0 <= details["runner_up_better"] <= 0.6
    assert details["expected_gain"] >= 0
    assert details["stopped"]


@pytest.mark.parametrize("n_windows", [0, 5, 10])
def test_no_mask_measured_in_full_is_better_and_without_a_race_ppls_is_among_them(n_windows: int) -> None:
    if n_windows:
        ids = model_game().calibration.ids[:n_windows]
        game = ModelGame(model_game().checkpoint, Calibration(ids, "t"), skeleton=model_game().masked.skeleton)
        choice = coop.search(game, REMOVE)
        measured = game.known_masks()
    else:
        game = Counting(layers(3))
        choice = coop.search(game, REMOVE)
        measured = np.concatenate(game.calls)
    wanted = measured[(~measured).sum(axis=1) == REMOVE]
    assert game(choice.mask[None])[0] >= game(wanted).max()
    if n_windows != 10:  # ten windows are raced on: a player alone may have been measured on two of them
        assert (wanted == ppl.search(game, REMOVE).mask).all(axis=1).any()


def test_how_sure_the_choice_is_is_the_bootstrap_of_its_windows() -> None:
    """The share on which the other mask is better, of the runner-up and of every alternative, by the game's own NLL."""
    game = model_game()
    choice = coop.search(game, REMOVE)
    others = {tuple(row["removed"]): row["better"] for row in choice.details["alternatives"]}
    others[tuple(choice.details["runner_up"])] = choice.details["runner_up_better"]
    masks = [np.ones(N, np.bool_), choice.mask, *(~np.isin(np.arange(N), removed) for removed in others)]
    full, best, *windows = game.window_scores(np.array(masks)).nll
    for share, other in zip(others.values(), windows, strict=True):
        again = probability_better(best - full, other - full, rng=np.random.default_rng(5), resamples=20_000)
        assert share == pytest.approx(again, abs=0.04)
    assert min(others.values()) < 0.4  # or the two ways round could not be told apart


def test_a_nested_family_ends_in_the_answer() -> None:
    choice = coop.search(layers(1), 5)
    family = [set(step["removed"]) for step in choice.details["nested"]]
    assert family[-1] == set(np.flatnonzero(~choice.mask).tolist())
    assert all(small < large for small, large in itertools.pairwise(family))
    assert len(family) >= 3
    for step, small in zip(choice.details["nested"], family, strict=True):
        worth = layers(1)(np.array([[player not in small for player in range(N)]]))[0]
        assert step["loss"] == pytest.approx(-np.log(worth))


def test_constraints_guide_the_search_from_the_start() -> None:
    """What would go first must stay: the chain that removes it leads nowhere."""
    game = Table(np.exp(-(~all_masks(N) @ np.linspace(0.01, 0.5, N))))
    allowed = ConstrainedFamily(None, N, keep=[0, 1, 2, 3], must_go=[11])
    choice = coop.search(game, 4, allowed=allowed)
    assert np.flatnonzero(~choice.mask).tolist() == [4, 5, 6, 11]
    assert all(not {0, 1, 2, 3} & set(step["removed"]) for step in choice.details["path"])


@pytest.mark.parametrize(("n", "n_remove"), [(2, 1), (3, 1), (3, 2), (N, 1), (N, N - 1)])
def test_the_smallest_games_and_the_ends(n: int, n_remove: int) -> None:
    game = layers(4, n)
    choice = coop.search(game, n_remove)
    assert game(choice.mask[None])[0] == optimum(game, n_remove)


def test_many_players_do_not_make_matrices_of_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    widest, predict = [0], Expansion.predict
    monkeypatch.setattr(Expansion, "predict", lambda self, sets: widest.append(len(sets)) or predict(self, sets))
    alone = np.random.default_rng(0).gamma(1.2, 0.05, 160)
    game = Additive(alone)
    choice = coop.search(game, 6, budget=190)
    assert max(widest) <= coop._SHORTLIST
    assert set(np.flatnonzero(~choice.mask)) == set(np.argsort(alone)[:6])


def test_bounded_worths_of_few_values() -> None:
    """An accuracy over 50 items: ties everywhere, and a model that answers nothing right."""
    fine = layers(2)
    game = Table(np.round(50 * fine.worths) / 50)
    choice = coop.search(game, REMOVE)
    assert game(choice.mask[None])[0] >= optimum(game, REMOVE) - 1 / 50
    json.dumps(choice.details, allow_nan=False)


def test_values_come_with_their_errors() -> None:
    weights = np.array([2.0, 0.1, 0.5, 1.0, 0.3, 0.2, 0.9, 1.5])
    choice = coop.search(Table(Additive(weights)(all_masks(8)) - 9), 3)
    assert choice.scores is not None
    np.testing.assert_allclose(choice.scores, weights, atol=0.05)
    assert (np.abs(choice.scores - weights) <= 4 * np.array(choice.details["values_stderr"]) + 1e-6).all()


def test_what_a_report_shows_of_the_search() -> None:
    game = layers(4)
    choice = coop.search(game, REMOVE)
    details, removed = choice.details, np.flatnonzero(~choice.mask)

    def loss(players: list[int]) -> float:
        mask = np.ones((1, N), dtype=bool)
        mask[0, players] = False
        return float(-np.log(game(mask)[0]))

    assert [len(row) for row in details["interactions"]] == [len(row) for row in details["interactions_stderr"]]
    assert [len(row) for row in details["interactions"]] == list(range(N - 1, -1, -1))
    # Values, pairs and players alone belong together: the loss of the chosen set is what the expansion says it is.
    pairs = np.zeros((N, N))
    pairs[np.triu_indices(N, 1)] = [value for row in details["interactions"] for value in row]
    pairs += pairs.T
    alone = choice.scores - 0.5 * pairs.sum(axis=1)
    said = alone[removed].sum() + 0.5 * pairs[np.ix_(removed, removed)].sum()
    assert said == pytest.approx(details["loss"], abs=0.02)
    assert [one["keeps"] for one in details["alternatives"]] == removed.tolist()
    for one in details["alternatives"]:
        assert one["keeps"] not in one["removed"]
        assert one["loss"] == pytest.approx(loss(one["removed"]))
        assert one["loss"] >= details["loss"]
    forecasts = details["forecasts"]
    assert len({len(column) for column in forecasts.values()}) == 1
    errors = np.abs(np.array(forecasts["expected"]) - np.array(forecasts["measured"]))
    assert (errors <= 4 * np.array(forecasts["stderr"])).mean() > 0.9
    # Forecasts are made before the masks are known: they err, and not by nothing.
    assert np.median(errors) > 1e-6


def test_worths_that_turn_negative_are_no_ratios() -> None:
    """The first masks all have positive worths, which a logarithm would fit; later ones have not."""
    weights = np.array([0.5, 0.1, 0.3, 0.6, 0.25, 0.2, 0.4, 0.35])
    game = Table(Additive(weights)(all_masks(8)) - weights.sum() + 0.7)
    choice = coop.search(game, 5)
    assert np.flatnonzero(~choice.mask).tolist() == [1, 2, 4, 5, 7]
    assert choice.details["loss"] == pytest.approx(weights[[1, 2, 4, 5, 7]].sum())


def test_same_seed_same_masks() -> None:
    first, again, other = (Counting(layers(3)) for _ in range(3))
    chosen = [coop.search(game, REMOVE, seed=seed) for game, seed in ((first, 0), (again, 0), (other, 1))]
    assert all(np.array_equal(a, b) for a, b in zip(first.calls, again.calls, strict=True))
    assert chosen[0].mask.tolist() == chosen[1].mask.tolist() == chosen[2].mask.tolist()


def test_only_the_allowed_are_chosen() -> None:
    family = Family(lambda mask: bool(mask[1::2].all()))  # only even players may go
    choice = coop.search(layers(1), 3, allowed=family)
    assert family.check(choice.mask) is None
    masks = all_masks(N)
    allowed = masks[[(~mask).sum() == 3 and family.check(mask) is None for mask in masks]]
    assert layers(1)(choice.mask[None])[0] == layers(1)(allowed).max()


def test_worths_that_are_no_numbers_are_never_chosen_and_do_not_stop_it() -> None:
    game = Spoilt(Redundant(N, [4, 6, 8, 10]))
    choice = coop.search(game, REMOVE)
    masks = all_masks(N)
    worths = game(masks[(~masks).sum(axis=1) == REMOVE])
    assert np.isnan(worths).any()
    assert game(choice.mask[None])[0] == pytest.approx(np.nanmax(worths))  # of a dozen that tie but for rounding
    with pytest.raises(RunError, match="measured masks have losses that are not finite"):
        coop.search(Table(np.full(1 << 6, np.nan)), 2)


@pytest.mark.parametrize("budget", [13, 14, 20, 40])
def test_the_budget_is_kept(budget: int) -> None:
    game = Counting(layers(2))
    assert coop.search(game, REMOVE, budget=budget).n_masks <= budget


def test_bad_requests() -> None:
    with pytest.raises(RequestError, match="a budget of at least 13, not 12"):
        coop.search(layers(0), 3, budget=12)
    with pytest.raises(RequestError, match="1 to 11 can be removed"):
        coop.search(layers(0), 12)


def test_progress_goes_by_the_budget() -> None:
    seen: list[tuple[str, int, int]] = []
    coop.search(layers(0), 3, budget=50, progress=lambda *call: seen.append(call))
    assert all(stage == "masks measured" and 0 < done <= total == 50 for stage, done, total in seen)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
