"""What a fit does with its pairs: which are drawn together, which are held out, and in which coordinates it trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.surrogate.fit import Coordinates, _held_out, _strata_left_out, bootstrap_counts, fit_networks
from layercoop_fast.surrogate.training import Parameters, forward

N = 8


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return stratified_masks(N, count, seed=seed, strata=[6, 4, 2])


def test_pairs_of_a_cluster_are_drawn_together_and_clusters_for_themselves() -> None:
    """Clusters are numbered as they like, with gaps, and their rows need not stand side by side."""
    masks = drawn(40)
    clusters = np.random.default_rng(1).choice([3, 7, 11, 40, 41, 99, 1000, 5000], 40)
    counts = fit_networks(masks, masks.sum(axis=1) * 1.0, ensemble=6, hidden=2, seed=0, clusters=clusters).counts
    by_cluster = np.array([counts[clusters == cluster][0] for cluster in np.unique(clusters)])
    for cluster, row in zip(np.unique(clusters), by_cluster, strict=True):
        assert (counts[clusters == cluster] == row).all()
    assert len(np.unique(by_cluster, axis=0)) > 4
    alone = fit_networks(masks, masks.sum(axis=1) * 1.0, ensemble=6, hidden=2, seed=0).counts
    assert len(np.unique(alone, axis=0)) > 20


def test_how_often_a_pair_is_drawn_is_poisson() -> None:
    counts = bootstrap_counts(4000, 10, np.random.default_rng(0))
    shares = np.bincount(counts.ravel())[:4] / counts.size
    np.testing.assert_allclose(shares, np.exp(-1) / np.array([1, 1, 2, 6]), atol=0.01)
    assert (bootstrap_counts(7, 1, np.random.default_rng(0)) == 1).all()


def test_a_tenth_of_each_size_is_held_out_with_all_copies() -> None:
    distinct = np.unique(drawn(300), axis=0)
    masks = np.random.default_rng(2).permutation(np.concatenate([distinct, distinct[::2], distinct[::3]]))
    held_out = _held_out(masks, np.random.default_rng(3))
    out, rest = ({mask.tobytes() for mask in masks[rows]} for rows in (held_out, ~held_out))
    assert not out & rest
    for size in (2, 4, 6):
        of_size = int((distinct.sum(axis=1) == size).sum())
        assert sum(np.frombuffer(mask, bool).sum() == size for mask in out) == round(of_size / 10)


def test_strata_left_out_are_spread_over_those_large_enough() -> None:
    def masks_of(**counts: int) -> np.ndarray:
        found = [(stratified_masks(12, 40 * count, strata=[int(size[1:])]), count) for size, count in counts.items()]
        return np.concatenate([np.unique(masks, axis=0)[:count] for masks, count in found])

    assert _strata_left_out(masks_of(k3=9, k5=9)).tolist() == []
    assert _strata_left_out(masks_of(k3=9, k5=4, k7=9)).tolist() == []
    assert _strata_left_out(masks_of(k3=9, k5=5, k7=9)).tolist() == [3, 5, 7]
    every = masks_of(k2=5, k3=5, k4=5, k5=5, k6=5, k7=5, k8=5, k9=5, k10=5)
    assert _strata_left_out(every).tolist() == [2, 4, 6, 8, 10]
    assert _strata_left_out(np.concatenate([every] * 3)).tolist() == [2, 4, 6, 8, 10]


def test_what_is_noise_is_not_foretold() -> None:
    """Masks that are held out were not trained on: worths without any rule stay unknown."""
    masks = np.unique(drawn(400), axis=0)
    noise = np.random.default_rng(5).normal(size=len(masks))
    quality = fit_networks(masks, noise, ensemble=4, hidden=16, seed=0).quality
    assert quality.inside.n_pairs >= 10
    assert quality.inside.r2 < 0.3
    assert all(r2 < 0.3 for r2 in quality.outside.values())


@pytest.mark.parametrize("hidden", [1, 5])
def test_folded_networks_answer_as_those_in_training(hidden: int) -> None:
    masks = drawn(50)
    targets = 3 + 5 * np.random.default_rng(0).normal(size=50)
    coordinates = Coordinates.of(masks, targets)
    generator = torch.Generator().manual_seed(0)
    p = Parameters.zeros(3, hidden, N)
    for tensor in (p.hidden_weight, p.hidden_bias, p.output_weight, p.linear, p.constant):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    expected = coordinates.back(forward(p, coordinates.inputs(masks)))  # [M, E]
    networks = coordinates.fold(p)
    folded = np.empty_like(expected)
    for e in range(3):
        pre = masks @ networks.hidden_weight[e].T.astype(float) + networks.hidden_bias[e]
        folded[:, e] = np.where(pre > 0, pre, np.expm1(np.minimum(pre, 0))) @ networks.output_weight[e]
        folded[:, e] += networks.output_bias[e]
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-4)
    # And back again, in the coordinates of other pairs.
    other = Coordinates.of(masks[:20], targets[:20] * 2 - 1)
    again = other.back(forward(other.unfold(networks), other.inputs(masks)))
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-4)
