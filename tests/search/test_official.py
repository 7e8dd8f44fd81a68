from __future__ import annotations

import json

import numpy as np
import pytest
from toy_games import Counting, Redundant, Spoilt

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.search import official
from layercoop_fast.surrogate.published import PublishedSurrogate

DISPENSABLE = [2, 5, 11]


@pytest.fixture(scope="module")
def game() -> Redundant:
    return Redundant(16, DISPENSABLE)


@pytest.fixture(scope="module")
def found(game: Redundant) -> official.Contributions:
    return official.contributions(game, budget=3000, seed=3)


def test_removes_what_is_dispensable_and_one_run_serves_every_size(found: official.Contributions) -> None:
    assert sorted(np.flatnonzero(~found.choice(3).mask)) == DISPENSABLE
    assert set(np.flatnonzero(~found.choice(2).mask)) < set(DISPENSABLE)
    assert set(np.flatnonzero(~found.choice(5).mask)) > set(DISPENSABLE)
    with pytest.raises(RequestError, match="can be removed, not 16"):
        found.choice(16)


def test_search_is_contributions_and_choice(game: Redundant) -> None:
    found = official.contributions(game, budget=100, seed=3)
    choice = official.search(game, 4, budget=100, seed=3)
    np.testing.assert_array_equal(choice.mask, found.choice(4).mask)
    np.testing.assert_array_equal(choice.scores, found.values.values)
    assert choice.details == {**found.details, "values_stderr": found.values.stderr.tolist()}


def test_asks_exactly_the_budget_in_one_call(game: Redundant) -> None:
    counting = Counting(game)
    choice = official.search(counting, 3, budget=123, seed=6)
    assert [len(call) for call in counting.calls] == [123]
    assert choice.n_masks == 123
    np.testing.assert_array_equal(counting.calls[0], stratified_masks(16, 123, seed=6))


def test_default_counts_are_the_published_ones(game: Redundant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "EPOCHS", 1)
    counting = Counting(game)
    found = official.contributions(counting)
    assert counting.asked == 8_000
    assert found.details["samples"] == 80_000
    assert found.values.n_evaluations == 80_000 * 17


def test_marginals_run_over_masks_of_their_own(game: Redundant, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    marginals = PublishedSurrogate.mean_marginals
    monkeypatch.setattr(
        PublishedSurrogate, "mean_marginals", lambda self, masks: seen.append(masks.copy()) or marginals(self, masks)
    )
    counting = Counting(game)
    official.contributions(counting, budget=50, samples=50, seed=2)
    assert (seen[0].sum(axis=1) == counting.calls[0].sum(axis=1)).all(), "the same strata"
    assert (seen[0] != counting.calls[0]).any(axis=1).mean() > 0.5, "other masks"


def test_spoilt_pairs_are_dropped_whole(game: Redundant, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fit sees are the finite masks, each with its own worth."""
    spoilt = Spoilt(game)
    fitted = []
    fit = PublishedSurrogate.fit

    def watching(masks: np.ndarray, worths: np.ndarray, **options: object) -> PublishedSurrogate:
        fitted.append((masks, worths))
        return fit(masks, worths, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PublishedSurrogate, "fit", watching)
    found = official.contributions(spoilt, budget=300, seed=1, samples=100)
    masks = stratified_masks(16, 300, seed=1)
    finite = ~spoilt.is_spoilt(masks)
    assert found.details["n_dropped"] == (~finite).sum() > 50
    assert found.n_masks == 300
    ((fit_masks, fit_worths),) = fitted
    np.testing.assert_array_equal(fit_masks, masks[finite])
    np.testing.assert_array_equal(fit_worths, game(fit_masks))


def test_measured_worths_are_as_good_as_a_game(game: Redundant) -> None:
    found = official.contributions(game, budget=100, seed=3)
    masks = stratified_masks(16, 100, seed=3)
    again = official.estimate(masks, game(masks), seed=3)
    np.testing.assert_array_equal(again.values.values, found.values.values)
    assert again.details == found.details


def test_details_tell_how_it_went(found: official.Contributions) -> None:
    assert found.details.keys() == {"estimator", "samples", "strata", "n_dropped", "mapped", "fit_r2"}
    assert found.details["estimator"] == "stratified_marginals"
    assert found.details["strata"] == [15, 14, 12, 11, 9]
    assert 0.7 < found.details["fit_r2"] <= 1
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details


def test_shapley_values_of_the_same_surrogate(game: Redundant) -> None:
    masks = stratified_masks(16, 300, seed=3)
    stratified = official.estimate(masks, game(masks), seed=3)
    shapley = official.estimate(masks, game(masks), seed=3, estimator="permutation", samples=100)
    np.testing.assert_array_equal(shapley.surrogate(masks), stratified.surrogate(masks))
    ends = shapley.surrogate(np.array([[False] * 16, [True] * 16]))
    assert shapley.values.values.sum() == pytest.approx(ends[1] - ends[0])
    assert shapley.details["estimator"] == "permutation"
    assert shapley.values.n_evaluations == 100 * 15 + 2


def test_every_stage_is_reported(game: Redundant) -> None:
    told: dict[str, tuple[int, int]] = {}
    official.contributions(
        game, budget=40, samples=90, progress=lambda stage, done, total: told.update({stage: (done, total)})
    )
    assert told == {"epochs": (300, 300), "marginals": (90, 90)}


def test_bad_requests_are_refused() -> None:
    masks = stratified_masks(8, 10)
    with pytest.raises(RequestError, match="none of 10 worths is finite"):
        official.estimate(masks, np.full(10, np.nan))
    with pytest.raises(RequestError, match="unknown estimator 'exact': the estimators are stratified, permutation"):
        official.estimate(masks, np.ones(10), estimator="exact")


def test_negative_worths_are_mapped_into_the_network_and_back() -> None:
    """A shifted and scaled game is the same game: the sigmoid's range must not show."""
    game = Redundant(10, [3])
    masks = stratified_masks(10, 400, seed=1)
    worths = game(masks)
    plain = official.estimate(masks, (worths - worths.min()) / np.ptp(worths), samples=200)
    mapped = official.estimate(masks, 7.0 * worths - 20.0, samples=200)
    np.testing.assert_allclose(mapped.values.values, 7.0 * np.ptp(worths) * plain.values.values, rtol=1e-4)
    assert plain.details["mapped"] is None
    np.testing.assert_allclose(mapped.details["mapped"], 7.0 * np.array([worths.min(), worths.max()]) - 20.0)
    assert mapped.details["fit_r2"] == pytest.approx(plain.details["fit_r2"], rel=1e-4)
    constant = official.estimate(masks, np.full(400, -3.0), samples=200)
    np.testing.assert_allclose(constant.values.values, 0, atol=0.05)
