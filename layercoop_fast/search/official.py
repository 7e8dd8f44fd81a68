"""The published method: stratified masks, a surrogate, stratified marginals; players of least marginal are removed.

Source: arXiv 2602.07804. Two faults of the published code are corrected: a pair with a NaN or infinite worth is dropped
as a whole (there, only the worth was dropped, which shifted all later pairs), and the first masks are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.stratified import published_strata, stratified_masks
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of, play
from layercoop_fast.search.base import (
    Allowed,
    Asked,
    Choice,
    budget_or,
    check_n_remove,
    finite_or_none,
    least_valuable,
    search_method,
)
from layercoop_fast.shapley.permutation import shapley_values
from layercoop_fast.shapley.stratified import stratified_marginals
from layercoop_fast.shapley.values import ShapleyValues
from layercoop_fast.surrogate.pairs import finite_pairs
from layercoop_fast.surrogate.published import PublishedSurrogate

DEFAULT_BUDGET = 8_000
DEFAULT_SAMPLES = {"stratified": 80_000, "permutation": 2_000}
EPOCHS = 300


@dataclass(frozen=True, eq=False)
class Contributions:
    """The contributions of the players, which do not depend on the size: one run serves every size.

    Attributes:
        values: contribution of each player on the surrogate; `values.method` names the estimator.
        surrogate: of worths mapped to 0..1: see `details["mapped"]`.
        n_masks: measured masks, those of unusable worth included.
        details: estimator, samples, strata, number of dropped pairs, R² of the fit on its own pairs; ready for JSON.
    """

    values: ShapleyValues
    surrogate: PublishedSurrogate
    n_masks: int
    details: dict[str, Any]

    def choice(self, n_remove: int, *, allowed: Allowed | None = None) -> Choice:
        """Remove the `n_remove` players of least contribution (see `least_valuable`)."""
        scores = self.values.values
        check_n_remove(len(scores), n_remove)
        mask = least_valuable(scores, n_remove, allowed)
        details = {**self.details, "values_stderr": [finite_or_none(error) for error in self.values.stderr]}
        return Choice(mask, "official", scores, self.n_masks, details)


@search_method
def search(asked: Asked) -> Choice:
    """Remove the players of least contribution; exactly `budget` masks (8,000 by default) are measured, in one call.

    For several sizes call `contributions` once and its `choice` for each size; for measured worths call `estimate`.
    """
    found = contributions(asked.game, seed=asked.seed, budget=asked.budget, progress=asked.progress)
    return found.choice(asked.n_remove, allowed=asked.allowed)


def contributions(
    game: Game,
    *,
    seed: int = 0,
    budget: int | None = None,
    strata: Sequence[int] | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Contributions:
    """Measure `budget` stratified masks (8,000 by default) on the game, then `estimate` the published contributions.

    The masks are `stratified_masks(n, budget, seed=seed, strata=strata)`, so those of an earlier run are reproducible.
    """
    budget = budget_or(budget, DEFAULT_BUDGET)
    masks = stratified_masks(n_players_of(game), budget, seed=seed, strata=strata)
    return estimate(masks, play(game, masks), samples=samples, seed=seed, strata=strata, progress=progress)


def estimate(
    masks: Masks,
    worths: Floats,
    *,
    estimator: str = "stratified",
    samples: int | None = None,
    seed: int = 0,
    strata: Sequence[int] | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Contributions:
    """Fit the surrogate to measured masks and worths, and estimate contributions on it.

    Args:
        masks: bool [M, n].
        worths: float64 [M]. The network's values lie in 0..1, as perplexity ratios do; where worths are negative (−NLL,
            −KL) their range, `details["mapped"]`, is mapped to 0..1 for the fit, and contributions are mapped back.
            Pairs with NaN or infinite worths are dropped and counted in `details["n_dropped"]`.
        estimator: "stratified" is the published one, `stratified_marginals` over new masks of the same strata;
            "permutation" is the surrogate's Shapley value from random permutations, which are not confined to strata.
        samples: masks (80,000 by default) or permutations (2,000 by default) of the estimator.
        seed: of the fit and of the samples.
        strata: numbers of kept players; the published ones by default.
        progress: called with ("epochs", done, total), and as by the estimator.
        device: "cuda" computes stratified marginals on a GPU (needs the extra `triton`).

    Raises `RequestError` for an unknown estimator and where no finite pair is left.
    """
    if estimator not in DEFAULT_SAMPLES:
        raise RequestError(f"unknown estimator {estimator!r}: the estimators are {', '.join(DEFAULT_SAMPLES)}")
    kept_masks, kept_worths, n_dropped = finite_pairs(masks, worths)
    if len(kept_worths) == 0:
        raise RequestError(f"none of {n_dropped} worths is finite: nothing to fit a surrogate to")

    def on_epoch(epoch: int, _loss: float) -> None:
        if progress is not None:
            progress("epochs", epoch, EPOCHS)

    n = masks.shape[1]
    strata = published_strata(n) if strata is None else list(strata)
    samples = DEFAULT_SAMPLES[estimator] if samples is None else samples
    low, high = float(kept_worths.min()), float(kept_worths.max())
    mapped = low < 0
    span = high - low if mapped and high > low else 1.0
    if mapped:
        kept_worths = (kept_worths - low) / span
    surrogate = PublishedSurrogate.fit(kept_masks, kept_worths, seed=seed, epochs=EPOCHS, on_epoch=on_epoch)
    if estimator == "stratified":
        # Another seed sequence: with the seed alone these masks would begin with those of the fit.
        fresh = stratified_masks(n, samples, seed=[seed, 1], strata=strata)
        values = stratified_marginals(surrogate, fresh, progress=progress, device=device)
    else:
        values = shapley_values(surrogate, n_permutations=samples, seed=seed, progress=progress)
    if mapped:
        values = replace(values, values=span * values.values, stderr=span * values.stderr)
    details = {
        "estimator": values.method,
        "samples": samples,
        "strata": strata,
        "n_dropped": n_dropped,
        "mapped": [low, high] if mapped else None,
        "fit_r2": finite_or_none(surrogate.r2(kept_masks, kept_worths)),
    }
    return Contributions(values, surrogate, len(masks), details)
