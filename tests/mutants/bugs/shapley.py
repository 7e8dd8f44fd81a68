"""Bugs in the estimators of Shapley values."""

# ruff: noqa: E501 - names of tests are long
from __future__ import annotations

from mutants.bug import Bug

PERMUTATION = "tests/shapley/test_permutation.py"
REGRESSION = "tests/shapley/test_regression.py"

BUGS = [
    Bug(
        "own-beta",
        "layercoop_fast/shapley/permutation.py",
        old="for these, others in _halves(len(sampled)):",
        new="for these, others in ((half, half) for half, _ in _halves(len(sampled))):",
        means="values with a control are biased towards what the sample happens to show",
        tests="tests/shapley/test_permutation.py::test_a_given_control_is_regressed_on_the_other_half",
    ),
    Bug(
        "control-fitted-to-its-own-half",
        "layercoop_fast/shapley/permutation.py",
        old="fitted = fit_pairwise(units.masks(orders[others]), by_unit[others].reshape(-1))",
        new="fitted = fit_pairwise(units.masks(orders[these]), by_unit[these].reshape(-1))",
        means="values with a fitted control are biased",
        tests="tests/shapley/test_permutation.py::test_a_fitted_control_is_unbiased_where_it_fits_worst",
    ),
    Bug(
        "control-values-not-added-back",
        "layercoop_fast/shapley/permutation.py",
        old="sampled = _regressed(sampled, known - control.values)",
        new="sampled = _regressed(sampled, known)",
        means="values with a control lose the control's share",
        tests="tests/shapley/test_permutation.py::test_a_control_that_fits_takes_the_variance_away tests/shapley/test_permutation.py::test_a_given_control_is_regressed_on_the_other_half",
    ),
    Bug(
        "last-arrival-left-out",
        "layercoop_fast/shapley/permutation.py",
        old="path[:, 0], path[:, -1] = none, all_kept",
        new="path[:, 0], path[:, -1] = none, none",
        means="values do not sum to the worth of the full model",
        tests="tests/shapley/test_permutation.py::test_values_sum_to_all_minus_none",
    ),
    Bug(
        "reverse-orders-by-the-first",
        "layercoop_fast/shapley/permutation.py",
        old="np.put_along_axis(marginals, every, np.diff(path, axis=1), axis=1)",
        new="np.put_along_axis(marginals, every, np.diff(path, axis=1)[:, ::-1], axis=1)",
        means="what a player adds is credited to the one opposite in the order",
        tests="tests/shapley/test_permutation.py::test_additive_game_is_exact",
    ),
    Bug(
        "evaluations-without-the-ends",
        "layercoop_fast/shapley/permutation.py",
        old="n_units * units.n_masks + 2, ",
        new="n_units * units.n_masks, ",
        means="the number of masks asked is understated",
        tests="tests/shapley/test_permutation.py::test_batches_change_nothing_and_the_count_is_exact",
    ),
    Bug(
        "kernel-mass",
        "layercoop_fast/shapley/regression.py",
        old="mass = n_sizes * (n - 1) / (size * (n - size))",
        new="mass = n_sizes * (n - 1) / size",
        means="the regression weighs sizes otherwise than the Shapley kernel",
        tests=REGRESSION,
    ),
    Bug(
        "finite-population",
        "layercoop_fast/shapley/regression.py",
        old="variance += (1 - drawn / total) * drawn * scores[start:stop].var(axis=0, ddof=1)",
        new="variance += drawn * scores[start:stop].var(axis=0, ddof=1)",
        means="standard errors ignore that sizes were asked nearly whole",
        tests=REGRESSION,
    ),
    Bug(
        "complement-target",
        "layercoop_fast/shapley/regression.py",
        old="difference * (2 * sizes / rows.shape[1] - 1)) / 2",
        new="difference * (2 * sizes / rows.shape[1])) / 2",
        means="values of the regression are shifted where sizes are unequal",
        tests=REGRESSION,
    ),
    Bug(
        "leverage-not-corrected",
        "layercoop_fast/shapley/regression.py",
        old="(residual / np.maximum(1 - leverage, _ROUNDING))[:, None]",
        new="residual[:, None]",
        means="standard errors of small budgets are far too small",
        tests=REGRESSION,
    ),
    Bug(
        "exact-weights",
        "layercoop_fast/shapley/exact.py",
        old="1 / (n * comb(n - 1, size)) for size in range(n)",
        new="1 / (n * comb(n, size)) for size in range(n)",
        means="exact values are wrong",
        tests="tests/shapley/test_exact.py",
    ),
    Bug(
        "marginal-sign-of-kept-players",
        "layercoop_fast/shapley/stratified.py",
        old="moments.add(np.where(block, -gain, gain))",
        new="moments.add(np.where(block, gain, gain))",
        means="published contributions of kept players have the wrong sign",
        tests="tests/shapley/test_stratified.py",
    ),
    Bug(
        "by-size-without-the-ends",
        "layercoop_fast/shapley/by_size.py",
        old="values = values + (ends[1].mean() - ends[0].mean()) / n",
        new="values = values + (ends[0].mean() - ends[1].mean()) / n",
        means="values from given masks sum to the negative of the full model's worth",
        tests="tests/shapley/test_by_size.py",
    ),
    Bug(
        "clusters-row-by-row",
        "layercoop_fast/shapley/by_size.py",
        old="groups = np.unique(clusters[between], return_inverse=True)[1]",
        new="groups = np.arange(int(between.sum()))",
        means="masks that were drawn together count as independent: errors too small",
        tests="tests/shapley/test_by_size.py",
    ),
    Bug(
        "banzhaf-weights",
        "layercoop_fast/shapley/mean_marginals.py",
        old="comb(n - 1, k) / 2 ** (n - 1) for k in range(n)",
        new="comb(n, k) / 2**n for k in range(n)",
        means="Banzhaf values are wrong",
        tests="tests/shapley/test_enumeration.py::test_indices_by_their_definitions tests/shapley/test_enumeration.py::test_axioms",
    ),
    Bug(
        "k-sii-pairs-twice",
        "layercoop_fast/shapley/mean_marginals.py",
        old="return self.shapley() - pairs.sum(axis=1) / 2, pairs",
        new="return self.shapley() - pairs.sum(axis=1), pairs",
        means="players and pairs together do not sum to the full model's worth",
        tests="tests/shapley/test_enumeration.py::test_indices_by_their_definitions tests/shapley/test_enumeration.py::test_axioms",
    ),
    Bug(
        "ridge-of-the-control",
        "layercoop_fast/shapley/control.py",
        old="return PairwiseGame(level - float(centre @ weights), weights[:n], interactions)",
        new="return PairwiseGame(level, weights[:n], interactions)",
        means="a fitted control is off by a constant",
        tests="tests/shapley/test_control.py",
    ),
]
