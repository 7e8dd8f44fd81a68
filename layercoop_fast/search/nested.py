"""coop for a nested family: a mask of every size up to the wanted one, each a superset of the previous removals.

    free choices   coop itself, for one size after another on the same measurements: the best mask of each size
    family         the chain of measured masks with the least total loss (`search/chains.py`); then, in rounds, the
                   chains near it that are expected to lower the total most are measured

One copy of the weights then serves every size, and switching to a smaller size only skips more layers. A chain costs
quality at sizes whose best mask is not nested with the others; the result states this cost for each size. The search
minimises the total of the losses, so losses at all sizes count equally.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search import coop
from layercoop_fast.search.base import Asked, Choice, finite_or_none, search_method
from layercoop_fast.search.chains import best_chain, climbed, neighbours
from layercoop_fast.search.coop import SPENT, TOLERANCE, Run
from layercoop_fast.search.measurements import MeasuredMask, Measurements
from layercoop_fast.search.proposals import expected_improvement
from layercoop_fast.search.target import Target

# Chains near the best that are considered in a round, and masks measured in one.
_NEAR, _ROUND = 64, 8
# New masks that the search for each smaller size may measure.
_EACH = 24
# When the surrogate expects no gain, this many more rounds are done, each with variances multiplied by the factor.
_DOUBTS, _DOUBT = 2, 4.0


@search_method
def search(asked: Asked) -> Choice:
    """Choose a nested family whose last mask removes `n_remove` players; that mask is the answer.

    Every mask of the family has to be `allowed`; sizes without an allowed mask are left out. `budget` is the number of
    distinct masks that may be measured, by default n + 120 + 40·n_remove; a single size gets only a part of it.

    The choice's `details["nested"]` has a step for each size with `n_removed`, `removed`, `loss`, and for the best mask
    of that size alone `free` (the players it removes) and `free_loss`. `details["nested_cost"]` states the cost of
    `size` (the search for the last size), `free` (for the other sizes) and `family`: `masks`, and on a model `passes`.

    Raises `RequestError` as `coop` does.
    """
    n, n_remove = asked.n, asked.n_remove
    most = n + 120 + 40 * n_remove if asked.budget is None else asked.budget
    if most < n + n_remove:
        raise RequestError(
            f"a nested family needs a mask of every player alone and one of every size: a budget of {n + n_remove} at "
            f"least, not {most}"
        )
    return _Family(asked, Measurements(asked.game, n, most)).choice()


class _Family:
    """One search."""

    def __init__(self, asked: Asked, measurements: Measurements) -> None:
        self.asked, self.measurements, self.allowed = asked, measurements, asked.allowed
        self.n, n_remove, allowed = asked.n, asked.n_remove, asked.allowed
        zeros, every = np.zeros(self.n), range(1, n_remove + 1)
        self.sizes = [size for size in every if allowed is None or allowed.best(zeros, self.n - size) is not None]
        if n_remove not in self.sizes:
            raise RequestError(f"no allowed mask removes {n_remove} of {self.n} players")
        rng = np.random.default_rng(asked.seed)
        self.runs = [Run(asked, measurements, Target.of_count(self.n, size), rng) for size in self.sizes]
        self.belief = self.runs[-1].belief
        self._spent = (0, 0)

    def choice(self) -> Choice:
        """Search, and return the result."""
        last, costs, measurements, most = self.runs[-1], {}, self.measurements, self.measurements.budget
        measurements.budget = min(most, coop.default_budget(self.n, self.sizes[-1]))
        last.seeds()
        last.chain()
        last.refine()
        costs["size"] = self._cost()
        # From small to large, so that the search for a size considers additions to the best masks of the previous one.
        for run in self.runs[:-1]:
            measurements.budget = min(most, len(measurements.entries) + _EACH)
            run.refine()
        costs["free"] = self._cost()
        measurements.budget = most
        stopped = self._improve()
        costs["family"] = self._cost()
        family = self._best()
        found = last.choice(stopped, family[-1])
        steps = [_step(entry, self._measured(int((~entry.mask).sum()))[0]) for entry in family]
        found.details.update(nested=steps, nested_cost=costs, path=[{**step} for step in steps])
        return found

    def _improve(self) -> str:
        """Measure chains until none is expected to gain; return why this ended."""
        self._make_whole()
        quiet = 0
        while True:
            best = self._best()
            total = sum(entry.loss for entry in best)
            chains = self._near(_removed(best))
            if not chains:
                return "every family near the best is measured"
            means, deviations = self._expect(chains)
            gain = float(expected_improvement(means, deviations, total).max())
            if gain >= TOLERANCE * len(best):
                quiet = 0
            elif quiet == _DOUBTS:
                return "no family is expected to gain more than the surrogate can tell"
            doubted = expected_improvement(means, deviations * math.sqrt(_DOUBT**quiet), total)
            due: dict[bytes, Masks] = {}
            for row in np.argsort(-doubted, kind="stable"):
                new = {mask.tobytes(): mask for mask in ~chains[row] if not self.measurements.knows_whole(mask)}
                if due and len(due | new) > _ROUND:
                    break
                due |= new
            known = self.measurements.version
            self.measurements.complete(np.stack(list(due.values())))
            if self.measurements.version == known:
                return SPENT
            quiet = quiet + 1 if sum(entry.loss for entry in self._best()) >= total else 0
            self.asked.report("masks measured", len(self.measurements.entries), self.measurements.budget)

    def _make_whole(self) -> None:
        """Measure a chain through all sizes, where the searches for single sizes left none.

        It starts from the best mask of the last size and puts players back, each time those with most expected gain.
        """
        outer = self._measured(self.sizes[-1])[:1]
        if not outer or len(self._best()) == len(self.sizes):
            return
        mask, chain = outer[0].mask, []
        for size in self.sizes[-2::-1]:
            found = self._within(mask, size)
            if found is not None:
                mask = found
                chain.append(found)
        if chain:
            self.measurements.complete(np.stack(chain))

    def _within(self, mask: Masks, size: int) -> Masks | None:
        """The mask of a size that removes only players that `mask` (bool [n]) removes, with the least expected loss.

        None where no allowed mask does.
        """
        fit = self.belief.fit
        ranks = fit.linear + fit.pairs @ ~mask
        ranks = np.where(mask, ranks + 2 * np.abs(ranks).sum() + 1, ranks)
        if self.allowed is None:
            found: Masks | None = np.ones(self.n, dtype=np.bool_)
            assert found is not None
            found[np.argsort(ranks, kind="stable")[:size]] = False
        else:
            found = self.allowed.best(ranks, self.n - size)
        return None if found is None or (mask & ~found).any() else found

    def _near(self, best: Masks) -> list[Masks]:
        """Allowed chains (bool [m, n]) near the best one, and near the one that the surrogate predicts to be best.

        Chains that are measured completely are left out, and those with a mask of infinite loss.
        """
        fit = self.belief.fit
        tops = [climbed(fit, best, self._is_allowed)]
        found = [*tops, *neighbours(fit, best, _NEAR), *neighbours(fit, tops[0], _NEAR // 4)]
        once = {chain.tobytes(): chain for chain in found if self._is_allowed(chain)}
        return [chain for chain in once.values() if self._is_open(chain)]

    def _is_open(self, chain: Masks) -> bool:
        found = [self.measurements.entries.get(mask.tobytes()) for mask in ~chain]
        whole = [entry for entry in found if entry is not None and entry.whole]
        return len(whole) < len(found) and all(math.isfinite(entry.loss) for entry in whole)

    def _expect(self, chains: list[Masks]) -> tuple[Floats, Floats]:
        """Expected total losses of C chains, float64 [C], and their standard deviations; measured masks have none."""
        means, variances = np.zeros(len(chains)), np.zeros(len(chains))
        for row, chain in enumerate(chains):
            whole = [self.measurements.knows_whole(mask) for mask in ~chain]
            known = [self.measurements.entries[mask.tobytes()].loss for mask in ~chain[whole]]
            expected, covariance = self.belief.predict(~chain[~np.array(whole)])
            means[row], variances[row] = sum(known) + expected.sum(), covariance.sum()
        return means, np.sqrt(np.maximum(variances, 0.0))

    def _best(self) -> list[MeasuredMask]:
        """The best family of measured masks."""
        found = [self._measured(size) for size in self.sizes]
        if not found[-1]:
            self.runs[-1].choice(SPENT)  # raises, since there is no mask to choose
        return best_chain(found)

    def _measured(self, size: int) -> list[MeasuredMask]:
        """Allowed masks of a size that were measured in full and are finite, best first."""
        return self.runs[self.sizes.index(size)].finalists()

    def _is_allowed(self, chain: Masks) -> bool:
        return self.allowed is None or all(self.allowed.check(mask) is None for mask in ~chain)

    def _cost(self) -> dict[str, Any]:
        """Measured masks, and on a model passes over the text, since the last call."""
        counts = getattr(self.asked.game, "evaluations", None)
        now = (len(self.measurements.entries), 0 if counts is None else counts.token_evals)
        masks, tokens = now[0] - self._spent[0], now[1] - self._spent[1]
        self._spent = now
        if counts is None:
            return {"masks": masks}
        game: Any = self.asked.game
        return {
            "masks": masks,
            "passes": round(tokens / (game.masked.skeleton.n_layers * game.masked.windows.ids.numel()), 2),
        }


def _removed(family: list[MeasuredMask]) -> Masks:
    chain = ~np.stack([entry.mask for entry in family])
    assert all((small <= large).all() for small, large in pairwise(chain))
    return chain


def _step(entry: MeasuredMask, free: MeasuredMask) -> dict[str, Any]:
    removed, alone = (np.flatnonzero(~one.mask).tolist() for one in (entry, free))
    return {
        "n_removed": len(removed),
        "removed": removed,
        "loss": finite_or_none(entry.loss),
        "free": alone,
        "free_loss": finite_or_none(free.loss),
    }
