from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.shapley import interactions
from layercoop_fast.shapley.exact import exact_shapley
from layercoop_fast.shapley.interactions import interaction_features, interaction_kernel


def terms(masks: Masks, degree: int) -> Floats:
    """e_T of every set T, one column a set: the definition."""
    signs = np.where(masks, 1.0, -1.0)
    sets = [list(players) for players in combinations(range(masks.shape[1]), degree)]
    columns = [signs[:, players].prod(axis=1) - signs[:, players].mean(axis=1) for players in sets]
    return np.stack(columns, axis=1) if columns else np.zeros((len(masks), 0))


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_the_table_is_the_sum_over_all_sets(n: int, degree: int) -> None:
    masks = all_masks(n)
    columns = terms(masks, degree)
    table = interaction_kernel(n, degree)
    sizes = masks.sum(axis=1)
    shared = masks.astype(int) @ masks.T.astype(int)
    expected = columns @ columns.T / max(1, columns.shape[1])
    np.testing.assert_allclose(table[sizes[:, None], sizes, shared], expected, atol=1e-12)


@pytest.mark.parametrize("degree", [3, 5])
def test_every_term_has_values_of_zero(degree: int) -> None:
    for column in terms(all_masks(6), degree).T:
        values = exact_shapley(lambda masks, column=column: column[masks @ (1 << np.arange(6))], 6).values
        np.testing.assert_allclose(values, 0, atol=1e-12)


@pytest.mark.parametrize("n", [31, 80])
def test_wide_tables_keep_the_rules_of_the_terms(n: int) -> None:
    """None and all answer zero, a complement the negative, and a matrix of inner products has no negative values."""
    masks = stratified_masks(n, 60, strata=range(1, n))
    table = interaction_kernel(n, 5)
    both = np.concatenate([masks, ~masks])
    kernel = interactions._between(table, both, both)
    np.testing.assert_allclose(kernel[:60], -kernel[60:], atol=1e-9 * np.abs(kernel).max())
    assert np.linalg.eigvalsh(kernel).min() > -1e-9 * np.abs(kernel).max()
    ends = np.array([[False] * n, [True] * n])
    np.testing.assert_allclose(interactions._between(table, ends, both), 0, atol=1e-9)


def test_features_predict_what_they_are_made_of() -> None:
    """On a game of threes the ridge is chosen small, and rows left out are predicted."""
    masks = stratified_masks(9, 300, strata=range(1, 9))
    columns = terms(masks, 3)
    target = columns @ np.random.default_rng(0).normal(size=columns.shape[1])
    fixed = masks - masks.mean(axis=1, keepdims=True)
    features = interaction_features(masks, fixed, target, np.ones(300), 0)
    fitted, rest = features[:200], features[200:]
    weights = np.linalg.solve(fitted.T @ fitted + np.eye(features.shape[1]), fitted.T @ target[:200])
    assert ((rest @ weights - target[200:]) ** 2).sum() < 0.05 * (target[200:] ** 2).sum()


def test_fewer_centres_than_rows_still_leave_the_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "_CENTRES", 20)
    monkeypatch.setattr(interactions, "_JUDGED", 30)
    masks = all_masks(8)[1:-1]
    sizes = masks.sum(axis=1)
    weights = 1 / np.array([len(list(combinations(range(8), int(size)))) * size * (8 - size) for size in sizes])
    fixed = masks - masks.mean(axis=1, keepdims=True)
    features = interaction_features(masks, fixed, np.random.default_rng(1).normal(size=254), weights * 254, 0)
    assert features.shape == (254, 20)
    np.testing.assert_allclose(fixed.T @ (weights[:, None] * features), 0, atol=1e-10 * np.abs(features).max())


def test_two_players_have_no_threes() -> None:
    masks = all_masks(2)[1:3]
    assert interaction_features(masks, masks - 0.5, np.zeros(2), np.ones(2), 0).shape == (2, 0)
