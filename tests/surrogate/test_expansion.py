"""The expansion against the regression on explicit features that it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.surrogate import expansion
from layercoop_fast.surrogate.expansion import REACH, Expansion


def features(removed: np.ndarray, fit: Expansion) -> tuple[np.ndarray, np.ndarray]:
    """One column a coefficient, and the variance that each has beforehand."""
    sets = removed.astype(float)
    n, strengths = sets.shape[1], fit.strengths
    pairs = list(itertools.combinations(range(n), 2))
    products = np.array([sets[:, i] * sets[:, j] for i, j in pairs]).reshape(len(pairs), len(sets)).T
    near = [column for column, (i, j) in enumerate(pairs) if j - i <= REACH]
    columns = [
        (sets.sum(1, keepdims=True), [expansion._COMMON]),
        (sets, [1.0] * n),
        (products.sum(1, keepdims=True), [expansion._COMMON_PAIR * strengths.pairs]),
        (products, [strengths.pairs] * len(pairs)),
        (products[:, near], [strengths.neighbours / (pairs[c][1] - pairs[c][0]) for c in near]),
    ]
    return np.concatenate([part for part, _ in columns], axis=1), np.concatenate([prior for _, prior in columns])


def posterior(fit: Expansion, removed: np.ndarray, losses: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and covariance of all coefficients, by the textbook formula, and their scale."""
    design, prior = features(removed, fit)
    weights = 1 / (fit.strengths.noise * noise)
    informed = prior > 0
    precision = (design[:, informed].T * weights) @ design[:, informed] + np.diag(1 / prior[informed])
    covariance = np.zeros((len(prior), len(prior)))
    covariance[np.ix_(informed, informed)] = np.linalg.inv(precision)
    mean = covariance @ (design.T @ (weights * losses))
    marginal = (design * prior) @ design.T + np.diag(1 / weights)
    scale = losses @ np.linalg.solve(marginal, losses) / len(losses)
    return mean, scale * covariance, scale


def example(n: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    removed = rng.random((rows, n)) < 0.4
    weights, pairs = rng.normal(1, 0.5, n), np.triu(rng.normal(0, 0.2, (n, n)), 1)
    losses = removed @ weights + np.einsum("mi,ij,mj->m", removed, pairs, removed) + rng.normal(0, 0.01, rows)
    return removed, losses, 1 + rng.random(rows)


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (2, 3), (5, 1), (7, 23), (11, 40)])
@pytest.mark.parametrize("neighbours", [0.0, 0.1])
def test_against_explicit_features(n: int, rows: int, neighbours: float) -> None:
    removed, losses, noise = example(n, rows)
    chosen = expansion._Strengths(0.03, neighbours, 1e-3)
    fit = Expansion(removed, losses, noise, strengths=chosen)
    mean, covariance, scale = posterior(fit, removed, losses, noise)
    asked = np.random.default_rng(1).random((9, n)) < 0.5
    design, _ = features(asked, fit)
    means, covariances = fit.predict(asked)
    np.testing.assert_allclose(means, design @ mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.mean(asked), means)
    np.testing.assert_allclose(fit.variances(asked), np.diag(covariances), rtol=1e-6, atol=1e-9 * scale)
    np.testing.assert_allclose(covariances, design @ covariance @ design.T, rtol=1e-5, atol=1e-8 * scale)
    # The value of a player is linear in the coefficients too: its own part, and half of each pair it is in.
    single = np.eye(n, dtype=bool)
    everyone = np.ones((1, n), dtype=bool)
    alone, _ = features(single, fit)
    whole, _ = features(everyone, fit)
    without, _ = features(~single, fit)
    functional = 0.5 * (alone + whole - without)
    values, stderr = fit.values()
    np.testing.assert_allclose(values, functional @ mean, rtol=1e-6, atol=1e-8)
    expected = np.sqrt(np.einsum("ij,jk,ik->i", functional, covariance, functional))
    np.testing.assert_allclose(stderr, expected, rtol=1e-4, atol=1e-6)
    # So is a pair: what both lose beyond each alone.
    errors = fit.pairs_stderr()
    for i, j in itertools.combinations(range(n), 2):
        both, _ = features(single[[i]] | single[[j]], fit)
        beyond = both[0] - alone[i] - alone[j]
        assert errors[i, j] == errors[j, i] == pytest.approx(np.sqrt(beyond @ covariance @ beyond), rel=1e-4, abs=1e-6)
    assert not np.diag(errors).any()


@pytest.mark.parametrize("seed", range(6))
def test_strengths_are_the_likeliest_of_the_grid(seed: int) -> None:
    """Of all of the grid, by the density of the losses on explicit features, the scale at its best for each."""
    removed, losses, _ = example(9, 30, seed)
    rng = np.random.default_rng(seed)
    noise = 10 ** rng.uniform(0, 3, len(losses))  # some are worth a thousandth of others
    losses = losses + np.sqrt(noise) * rng.normal(0, 0.02 * (1 + seed), len(losses))
    fit = Expansion(removed, losses, noise)
    densities = {}
    for strengths in itertools.product(expansion._PAIRS, expansion._NEIGHBOURS, expansion._NOISE):
        chosen = expansion._Strengths(*strengths)
        design, prior = features(removed, Expansion(removed, losses, noise, strengths=chosen))
        covariance = (design * prior) @ design.T + chosen.noise * np.diag(noise)
        scale = losses @ np.linalg.solve(covariance, losses) / len(losses)
        densities[chosen] = -0.5 * (len(losses) * np.log(scale) + np.linalg.slogdet(covariance)[1])
    assert densities[fit.strengths] == pytest.approx(max(densities.values()), abs=1e-6)


def test_enough_sets_show_every_pair() -> None:
    removed, losses, _ = example(9, 300, seed=2)
    fit = Expansion(removed, losses)
    fresh, truth, _ = example(9, 300, seed=2)
    error = fit.mean(fresh) - truth
    assert error.std() < 0.02
    assert 0.005 < fit.noise < 0.02, "the noise that was added is found"


def test_its_standard_deviations_are_right_on_what_it_has_not_seen() -> None:
    removed, losses, _ = example(12, 260, seed=3)
    fit = Expansion(removed[:60], losses[:60])
    means, covariance = fit.predict(removed[60:])
    z = (losses[60:] - means) / np.sqrt(np.diag(covariance) + fit.noise**2)
    assert 0.6 < np.sqrt((z * z).mean()) < 1.6


def test_a_noisy_measurement_counts_for_little() -> None:
    removed, losses, _ = example(6, 40)
    spoilt = losses.copy()
    spoilt[7] += 5
    noise = np.ones(40)
    noise[7] = 1e8
    chosen = expansion._Strengths(0.03, 0.0, 1e-3)
    ours = Expansion(removed, spoilt, noise, strengths=chosen)
    without = Expansion(np.delete(removed, 7, 0), np.delete(losses, 7), strengths=chosen)
    np.testing.assert_allclose(ours.mean(removed), without.mean(removed), atol=1e-3)


def test_bad_input() -> None:
    removed, losses, noise = example(4, 5)
    with pytest.raises(RequestError, match="finite losses"):
        Expansion(removed, np.where(np.arange(5) == 2, np.nan, losses))
    for wrong in ((removed[:4], losses, noise), (removed, losses, noise[:4]), (removed[0], losses, noise)):
        with pytest.raises(RequestError, match=r"sets \[M, n\]"):
            Expansion(*wrong)
    with pytest.raises(RequestError, match=r"sets \[M, n\]"):
        Expansion(removed[:0], losses[:0])
