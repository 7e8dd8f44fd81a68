"""Bugs in the estimators of Shapley values."""

from __future__ import annotations

from mutants.bug import Bug

PERMUTATION = "tests/shapley/test_permutation.py"
REGRESSION = "tests/shapley/test_regression.py"

BUGS = [
    Bug(
        "own-beta",
        "layercoop_fast/shapley/permutation.py",
        old="        centred = noise[others] - noise[others].mean(axis=0)\n"
        "        beta = float((centred * sampled[others]).sum() / (centred**2).sum())",
        new="        centred = noise[these] - noise[these].mean(axis=0)\n"
        "        beta = float((centred * sampled[these]).sum() / (centred**2).sum())",
        means="values with a control are biased towards what the sample happens to show",
        tests=PERMUTATION,
    ),
    Bug(
        "control-fitted-to-its-own-half",
        "layercoop_fast/shapley/permutation.py",
        old="fitted = fit_pairwise(units.masks(orders[others]), by_unit[others].reshape(-1))",
        new="fitted = fit_pairwise(units.masks(orders[these]), by_unit[these].reshape(-1))",
        means="values with a fitted control are biased",
        tests=PERMUTATION,
    ),
    Bug(
        "control-values-not-added-back",
        "layercoop_fast/shapley/permutation.py",
        old="sampled = _regressed(sampled, known - control.values)",
        new="sampled = _regressed(sampled, known)",
        means="values with a control lose the control's share",
        tests=PERMUTATION,
    ),
    Bug(
        "last-arrival-left-out",
        "layercoop_fast/shapley/permutation.py",
        old="path[:, 0], path[:, -1] = none, all_kept",
        new="path[:, 0], path[:, -1] = none, none",
        means="values do not sum to the worth of the full model",
        tests=PERMUTATION,
    ),
    Bug(
        "reverse-orders-by-the-first",
        "layercoop_fast/shapley/permutation.py",
        old="np.put_along_axis(marginals, every, np.diff(path, axis=1), axis=1)",
        new="np.put_along_axis(marginals, every, np.diff(path, axis=1)[:, ::-1], axis=1)",
        means="what a player adds is credited to the one opposite in the order",
        tests=PERMUTATION,
    ),
    Bug(
        "evaluations-without-the-ends",
        "layercoop_fast/shapley/permutation.py",
        old="n_units * units.n_masks + 2, ",
        new="n_units * units.n_masks, ",
        means="the number of masks asked is understated",
        tests=PERMUTATION,
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
        "half-stratum-with-both-complements",
        "layercoop_fast/shapley/regression.py",
        old="more ^= ~more[:, :1]",
        new="more ^= more[:, :1]",
        means="of the middle size pairs of complements are drawn that lie outside the stratum",
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
        tests="tests/shapley/test_enumeration.py tests/shapley/test_interop.py",
    ),
    Bug(
        "k-sii-pairs-twice",
        "layercoop_fast/shapley/mean_marginals.py",
        old="return self.shapley() - pairs.sum(axis=1) / 2, pairs",
        new="return self.shapley() - pairs.sum(axis=1), pairs",
        means="players and pairs together do not sum to the full model's worth",
        tests="tests/shapley/test_enumeration.py tests/shapley/test_interop.py",
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
