from __future__ import annotations

from functools import partial
from math import comb

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.masks.samplers import (
    SAMPLERS,
    chain_masks,
    get_sampler,
    independent_masks,
    subset_masks,
    two_stage_masks,
)
from layercoop_fast.masks.stratified import published_strata, stratified_masks

DRAWN = {
    "two-stage": two_stage_masks,
    "two-stage, three suffixes": partial(two_stage_masks, cut=2, suffixes=3),
    "chains": chain_masks,
    "chains, two suffixes": partial(chain_masks, cut=4, suffixes=2),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_row_is_uniform_in_its_stratum(name: str) -> None:
    """Chi-square on all 15 sets of 2 of 6, of one row a cluster: 14 degrees of freedom, passed once in 10,000 at 42.6.

    The last row of a cluster is the one that depends on others, if any does.
    """
    masks, clusters = DRAWN[name](6, 60_000, seed=3, strata=[4, 2])
    of_size = masks.sum(axis=1) == 2
    assert of_size.sum() == 30_000
    last = np.diff(clusters[of_size], append=-1) != 0
    codes = masks[of_size][last] @ (1 << np.arange(6))
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == comb(6, 2)
    assert ((counts - last.sum() / 15) ** 2 / (last.sum() / 15)).sum() < 42.6


@pytest.mark.parametrize("name", DRAWN)
def test_strata_get_what_stratified_masks_gives_them(name: str) -> None:
    for n_masks in (1, 7, 203):
        masks, clusters = DRAWN[name](30, n_masks, seed=1)
        assert masks.dtype == np.bool_
        assert clusters.dtype == np.int64
        assert clusters.shape == (n_masks,)
        np.testing.assert_array_equal(masks.sum(axis=1), stratified_masks(30, n_masks).sum(axis=1))


def test_completions_of_a_prefix_share_it_and_differ_behind_it() -> None:
    masks, clusters = two_stage_masks(20, 500, seed=5, cut=12, suffixes=4)
    assert len(np.unique(clusters)) == 125
    assert (np.bincount(clusters) == 4).all()
    groups = masks.reshape(125, 4, 20)
    assert (groups[:, :1, :12] == groups[:, :, :12]).all()
    assert (groups[:, :1, 12:] != groups[:, 1:, 12:]).any(axis=2).mean() > 0.6
    assert len(np.unique(groups[:, 0, :12], axis=0)) > 80, "prefixes are drawn apart"


def test_masks_of_an_order_lie_within_each_other() -> None:
    strata = [17, 9, 4]
    masks, clusters = chain_masks(20, 300, seed=2, strata=strata)
    large, middle, small = masks.reshape(3, 100, 20)
    assert (clusters.reshape(3, 100) == np.arange(100)).all()
    assert (large >= middle).all()
    assert (middle >= small).all()
    families, clusters = chain_masks(20, 300, seed=2, strata=strata, cut=8, suffixes=2)
    pairs = families.reshape(3, 50, 2, 20)
    assert (pairs[:, :, 0, :8] == pairs[:, :, 1, :8]).all(), "at every size"
    assert (pairs[:, :, 0, 8:] != pairs[:, :, 1, 8:]).any()
    assert (clusters.reshape(3, 50, 2) == np.arange(50)[:, None]).all()


def test_subsets_list_the_least_removed_and_draw_from_the_last() -> None:
    n = 12
    whole = 1 + n + comb(n, 2)
    masks, clusters = subset_masks(n, whole + 60, seed=4)
    assert len(np.unique(masks, axis=0)) == whole + 60
    assert (np.diff(clusters) == 1).all()
    assert np.bincount((~masks).sum(axis=1)).tolist() == [1, n, comb(n, 2), 60]
    assert (subset_masks(4, 16)[0].sum(axis=0) == 8).all(), "all sixteen"
    assert subset_masks(5, 15, strata=[2, 4])[0].sum(axis=1).tolist() == [2] * 10 + [4] * 5
    # 30 of 30 choose 15 are drawn one by one, and none twice.
    assert len(np.unique(subset_masks(30, 30, strata=[15])[0], axis=0)) == 30


def test_what_is_drawn_from_a_stratum_of_subsets_is_uniform() -> None:
    """60 draws of 40 of 220: every set of 3 of 12 is in a sample with chance 2 / 11."""
    held = np.zeros(1 << 12)
    for seed in range(60):
        held[subset_masks(12, 40, seed=seed, strata=[9])[0] @ (1 << np.arange(12))] += 1
    held = held[held > 0]
    assert len(held) == 220
    assert ((held - 60 * 2 / 11) ** 2).mean() == pytest.approx(60 * 2 / 11 * 9 / 11, rel=0.35)


def test_the_published_sampler_is_stratified_masks() -> None:
    masks, clusters = independent_masks(30, 100, seed=8)
    np.testing.assert_array_equal(masks, stratified_masks(30, 100, seed=8))
    assert clusters.tolist() == list(range(100))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_is_a_sample(name: str) -> None:
    first, again, other = (get_sampler(name)(16, 200, seed=seed) for seed in (1, 1, [1, 1]))
    np.testing.assert_array_equal(first.masks, again.masks)
    np.testing.assert_array_equal(first.clusters, again.clusters)
    assert (first.masks != other.masks).any()


def test_what_a_mask_costs() -> None:
    """Distinct kept prefixes a mask, 2,000 masks of 64 layers in the published strata, or subsets."""
    masks = 2000

    def cost(drawn: object) -> float:
        return count_evaluations(drawn.masks).plan / masks  # type: ignore[attr-defined]

    alone = cost(independent_masks(64, masks))
    assert alone > 30
    assert cost(two_stage_masks(64, masks)) < 0.85 * alone
    assert cost(two_stage_masks(64, masks, cut=48, suffixes=8)) < 0.5 * alone
    assert cost(chain_masks(64, masks, suffixes=2)) < 0.85 * alone
    assert cost(subset_masks(64, masks)) < 0.7 * alone


def test_what_cannot_be_drawn_is_said() -> None:
    for call, words in [
        (lambda: get_sampler("twostage"), "did you mean 'two-stage'"),
        (lambda: get_sampler("sobol"), "The samplers are strata, two-stage, chains, subsets"),
        (lambda: two_stage_masks(8, 10, cut=8), "1 to 7 of 8 players before it, not 8"),
        (lambda: two_stage_masks(8, 10, suffixes=0), "at least 1 a prefix, not 0"),
        (lambda: chain_masks(8, 10, cut=0), "1 to 7 of 8 players before it, not 0"),
        (lambda: two_stage_masks(8, 10, strata=[9]), "between 0 and 8 players, not 9"),
        (lambda: chain_masks(8, 10, strata=[3, 3]), "distinct kept counts"),
        (lambda: subset_masks(8, 0), "at least 1, not 0"),
        (lambda: subset_masks(8, 257), "hold 256 masks, not 257"),
        (lambda: subset_masks(8, 10, strata=[7]), "hold 8 masks, not 10"),
        (lambda: two_stage_masks(1, 10), "at least 2 players"),
    ]:
        with pytest.raises(RequestError, match=words.replace("(", r"\(")):
            call()
    assert published_strata(8), "those of eight players exist"
