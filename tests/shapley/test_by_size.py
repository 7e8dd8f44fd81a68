from __future__ import annotations

import numpy as np
import pytest
from toy_games import Additive, Redundant, Table

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.samplers import chain_masks, two_stage_masks
from layercoop_fast.masks.stratified import all_masks, stratified_masks
from layercoop_fast.shapley.by_size import size_values
from layercoop_fast.shapley.exact import exact_shapley

N = 7
ANY = Table(np.random.default_rng(0).normal(size=1 << N))


def test_over_every_mask_they_are_the_shapley_values() -> None:
    masks = all_masks(N)
    found = size_values(masks, ANY(masks))
    np.testing.assert_allclose(found.values, exact_shapley(ANY).values, atol=1e-12)
    assert (found.method, found.n_evaluations) == ("shapley_by_size", 1 << N)


def test_at_chosen_sizes_they_are_the_mean_over_sizes_of_a_difference_of_means() -> None:
    masks = all_masks(N)
    masks = masks[np.isin(masks.sum(axis=1), [3, 5])]
    worths = ANY(masks)

    def gap(player: int, size: int) -> float:
        of_size = masks.sum(axis=1) == size
        with_it, without = (worths[of_size & (masks[:, player] == there)] for there in (True, False))
        return float(with_it.mean() - without.mean())

    expected = [(gap(i, 3) + gap(i, 5)) / 2 * (N - 1) / N for i in range(N)]
    found = size_values(masks, worths)
    assert found.method == "fixed_size"
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert abs(found.values.sum()) < 1e-12


@pytest.mark.parametrize("missing", [(0,), (N,), (0, N), (1,), (4,), (N - 1,)])
def test_where_a_size_or_an_end_is_missing_they_are_no_shapley_values(missing: tuple[int, ...]) -> None:
    every = all_masks(N)
    masks = every[~np.isin(every.sum(axis=1), missing)]
    found = size_values(masks, ANY(masks))
    assert found.method == "fixed_size"
    between = masks[~np.isin(masks.sum(axis=1), [0, N])]
    np.testing.assert_allclose(found.values, size_values(between, ANY(between)).values, atol=1e-12)
    assert abs(found.values.sum()) < 1e-12


def test_an_additive_game_is_exact_from_few_masks() -> None:
    weights = np.arange(9.0)
    masks = stratified_masks(9, 40, strata=[8, 6, 5])
    found = size_values(masks, Additive(weights)(masks))
    np.testing.assert_allclose(found.values, weights - weights.mean(), atol=1e-12)
    np.testing.assert_allclose(found.stderr, 0, atol=1e-12)


@pytest.mark.parametrize("sampler", [two_stage_masks, chain_masks])
def test_standard_errors_are_those_of_leaving_clusters_out(sampler) -> None:  # type: ignore[no-untyped-def]
    """Against the same weighted fit, constants of the sizes spelt out, on all rows but those of one cluster."""
    masks, clusters = sampler(N, 60, seed=2, strata=[5, 3, 2])
    worths = ANY(masks)
    sizes = masks.sum(axis=1)
    weight = 1 / (sizes * (N - sizes))
    design = np.column_stack([sizes == size for size in (5, 3, 2)] + [masks - sizes[:, None] / N]).astype(float)

    def fit(rows: np.ndarray) -> np.ndarray:
        root = np.sqrt(weight[rows])
        return np.linalg.lstsq(root[:, None] * design[rows], root * worths[rows], rcond=1e-10)[0][3:]

    everything = fit(np.ones(60, dtype=bool))
    lost = [everything - fit(clusters != cluster) for cluster in np.unique(clusters)]
    found = size_values(masks, worths, clusters=clusters)
    np.testing.assert_allclose(found.values, everything, atol=1e-10)
    np.testing.assert_allclose(found.stderr, np.sqrt((np.array(lost) ** 2).sum(axis=0)), rtol=1e-8)


def test_intervals_by_clusters_hold_the_truth_and_those_by_rows_do_not() -> None:
    """Eight completions of each prefix, and a game whose residuals are mostly of the prefix."""
    n, cut = 10, 8
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=1 << cut)
    game = lambda masks: signs[masks[:, :cut] @ (1 << np.arange(cut))]  # noqa: E731
    every = all_masks(n)
    every = every[np.isin(every.sum(axis=1), [5, 6])]
    truth = size_values(every, game(every)).values
    inside = {"clusters": 0.0, "rows": 0.0}
    for seed in range(60):
        masks, clusters = two_stage_masks(n, 320, seed=seed, strata=[5, 6], cut=cut, suffixes=8)
        for name, given in (("clusters", clusters), ("rows", None)):
            found = size_values(masks, game(masks), clusters=given)
            inside[name] += (np.abs(found.values - truth) < 1.96 * found.stderr)[:cut].mean() / 60
    assert 0.91 < inside["clusters"] < 0.99
    assert inside["rows"] < 0.75


def test_shares_of_unequal_sizes_do_not_move_the_values() -> None:
    """Each size counts alike, however many rows it has."""
    game = Redundant(8, [2, 5])
    even = stratified_masks(8, 8000, seed=1, strata=[6, 3])
    uneven = np.concatenate([even[:4000], even[4000:4400]])
    many, few = (size_values(masks, game(masks)).values for masks in (even, uneven))
    np.testing.assert_allclose(many, few, atol=0.01)
    np.testing.assert_allclose(np.sort(np.argsort(many)[:2]), [2, 5])


def test_what_does_not_fit_is_said() -> None:
    masks = stratified_masks(8, 30, strata=[5])
    worths = np.zeros(30)
    for arguments, words in [
        (((masks, worths[:-1]), {}), "30 masks need worths"),
        (((masks, worths + np.nan), {}), "30 of 30 worths are NaN"),
        (((masks[:5], worths[:5]), {}), "do not tell 8 players apart"),
        (((masks, worths), {"clusters": np.zeros(29, dtype=np.int64)}), "need clusters of shape"),
    ]:
        with pytest.raises(RequestError, match=words):
            size_values(*arguments[0], **arguments[1])
