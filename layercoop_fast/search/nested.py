"""coop for a family: masks of all sizes up to the wanted one, each removing what the one before it removes and more.

    free choices   coop itself, size after size on one ledger: the best mask of each size by itself
    family         of all chains of measured masks that of the least total loss (`search/chains.py`); then, round by
                   round, the chains near it that are expected to lower the total most

One copy of the weights then serves every size, and a size that is left for a smaller one keeps all that it has kept.
A chain costs quality at the sizes whose best mask lies in no other's: by how much stands beside each size. The total
of losses is what is made small, so a nat more at one size counts as a nat less at another.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of
from layercoop_fast.search import coop
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, finite_or_none
from layercoop_fast.search.chains import best_chain, climbed, neighbours
from layercoop_fast.search.coop import SPENT, TOLERANCE, Run
from layercoop_fast.search.measurements import Entry, Measurements
from layercoop_fast.search.proposals import expected_improvement
from layercoop_fast.search.target import Target

# Chains near the best that are looked at in a round, and masks measured in one.
_NEAR, _ROUND = 64, 8
# Masks that the search for each smaller size may measure beyond what is known by then.
_EACH = 24
# Rounds that a surrogate which expects no gain is doubted for, and the factor of each on its variances.
_DOUBTS, _DOUBT = 2, 4.0


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Choose a family of which the last mask removes `n_remove` players; that mask is the answer.

    Sizes of which no mask is `allowed` (which holds for every mask of the family) are left out. `budget` is how many
    distinct masks may be measured; n + 120 + 40·n_remove unless given, of which no single size gets all.

    The choice's `details["nested"]` has a step for each size, `n_removed`, `removed`, `loss`, and of the best mask of
    the size by itself `free` (what it removes) and `free_loss`; `details["nested_cost"]` what `size` (a search for the
    last size alone), `free` (for the others too) and `family` took: `masks`, and on a model `passes`.

    Raises `RequestError` as `coop` does.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    most = n + 120 + 40 * n_remove if budget is None else budget
    if most < n + n_remove:
        raise RequestError(
            f"a nested family takes a mask of every player alone and one of every size: a budget of {n + n_remove} at "
            f"least, not {most}"
        )
    return _Family(game, Measurements(game, n, most), n_remove, allowed, seed, progress).choice()


class _Family:
    """One search."""

    def __init__(
        self,
        game: Game,
        ledger: Measurements,
        n_remove: int,
        allowed: Allowed | None,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.game, self.ledger, self.allowed = game, ledger, allowed
        self.n = ledger.n_players
        zeros, every = np.zeros(self.n), range(1, n_remove + 1)
        self.sizes = [size for size in every if allowed is None or allowed.best(zeros, self.n - size) is not None]
        if n_remove not in self.sizes:
            raise RequestError(f"no allowed mask removes {n_remove} of {self.n} players")
        rng = np.random.default_rng(seed)
        self.runs = [Run(ledger, Target.of_count(self.n, size), allowed, rng, progress) for size in self.sizes]
        self.belief = self.runs[-1].belief
        self._progress = progress
        self._spent = (0, 0)

    def choice(self) -> Choice:
        """Search, and say what was found."""
        last, costs, ledger, most = self.runs[-1], {}, self.ledger, self.ledger.budget
        ledger.budget = min(most, coop.default_budget(self.n, self.sizes[-1]))
        last.seeds()
        last.chain()
        last.refine()
        costs["size"] = self._cost()
        # From small to large, so that additions to the best of a size are looked at in the next.
        for run in self.runs[:-1]:
            ledger.budget = min(most, len(ledger.entries) + _EACH)
            run.refine()
        costs["free"] = self._cost()
        ledger.budget = most
        stopped = self._improve()
        costs["family"] = self._cost()
        family = self._best()
        found = last.choice(stopped, family[-1])
        steps = [_step(entry, self._measured(int((~entry.mask).sum()))[0]) for entry in family]
        found.details.update(nested=steps, nested_cost=costs, path=[{**step} for step in steps])
        return found

    def _improve(self) -> str:
        """Measure chains until none is expected to gain; returns why that ended."""
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
                new = {mask.tobytes(): mask for mask in ~chains[row] if not self.ledger.knows_whole(mask)}
                if due and len(due | new) > _ROUND:
                    break
                due |= new
            known = self.ledger.version
            self.ledger.complete(np.stack(list(due.values())))
            if self.ledger.version == known:
                return SPENT
            quiet = quiet + 1 if sum(entry.loss for entry in self._best()) >= total else 0
            if self._progress is not None:
                self._progress("masks measured", len(self.ledger.entries), self.ledger.budget)

    def _make_whole(self) -> None:
        """Measure a chain through all sizes, where the search for single sizes left none.

        Below the best of the last size players are put back one after another, by what that is expected to win.
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
            self.ledger.complete(np.stack(chain))

    def _within(self, mask: Masks, size: int) -> Masks | None:
        """The mask of a size that removes nothing else than `mask` (bool [n]), of least expected loss, or None."""
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
        """Allowed chains (bool [m, n]) near the best and near what the surrogate takes for the best.

        Those that are known whole are left out, and those with a mask that is known to be broken.
        """
        fit = self.belief.fit
        tops = [climbed(fit, best, self._is_allowed)]
        found = [*tops, *neighbours(fit, best, _NEAR), *neighbours(fit, tops[0], _NEAR // 4)]
        once = {chain.tobytes(): chain for chain in found if self._is_allowed(chain)}
        return [chain for chain in once.values() if self._is_open(chain)]

    def _is_open(self, chain: Masks) -> bool:
        found = [self.ledger.entries.get(mask.tobytes()) for mask in ~chain]
        whole = [entry for entry in found if entry is not None and entry.whole]
        return len(whole) < len(found) and all(math.isfinite(entry.loss) for entry in whole)

    def _expect(self, chains: list[Masks]) -> tuple[Floats, Floats]:
        """Expected totals of chains, float64 [C], and their standard deviations; what is measured is known."""
        means, variances = np.zeros(len(chains)), np.zeros(len(chains))
        for row, chain in enumerate(chains):
            whole = [self.ledger.knows_whole(mask) for mask in ~chain]
            known = [self.ledger.entries[mask.tobytes()].loss for mask in ~chain[whole]]
            expected, covariance = self.belief.predict(~chain[~np.array(whole)])
            means[row], variances[row] = sum(known) + expected.sum(), covariance.sum()
        return means, np.sqrt(np.maximum(variances, 0.0))

    def _best(self) -> list[Entry]:
        """The best family of measured masks."""
        found = [self._measured(size) for size in self.sizes]
        if not found[-1]:
            self.runs[-1].choice(SPENT)  # says so
        return best_chain(found)

    def _measured(self, size: int) -> list[Entry]:
        """Allowed masks of a size measured in full and finite, best first."""
        return self.runs[self.sizes.index(size)].finalists()

    def _is_allowed(self, chain: Masks) -> bool:
        return self.allowed is None or all(self.allowed.check(mask) is None for mask in ~chain)

    def _cost(self) -> dict[str, Any]:
        """Masks, and on a model passes over the text, since the last call."""
        counts = getattr(self.game, "evaluations", None)
        now = (len(self.ledger.entries), 0 if counts is None else counts.token_evals)
        masks, tokens = now[0] - self._spent[0], now[1] - self._spent[1]
        self._spent = now
        if counts is None:
            return {"masks": masks}
        game: Any = self.game
        return {
            "masks": masks,
            "passes": round(tokens / (game.masked.skeleton.n_layers * game.masked.windows.ids.numel()), 2),
        }


def _removed(family: list[Entry]) -> Masks:
    chain = ~np.stack([entry.mask for entry in family])
    assert all((small <= large).all() for small, large in pairwise(chain))
    return chain


def _step(entry: Entry, free: Entry) -> dict[str, Any]:
    removed, alone = (np.flatnonzero(~one.mask).tolist() for one in (entry, free))
    return {
        "n_removed": len(removed),
        "removed": removed,
        "loss": finite_or_none(entry.loss),
        "free": alone,
        "free_loss": finite_or_none(free.loss),
    }
