"""Our search: a surrogate with error bars chooses the masks to measure, until the gain that is left is noise.

    seeds      every player alone, and the masks of the methods that need one pass (shortgpt, angular, ppl)
    chain      one more player at a time (lazy greedy): of the additions to the best masks so far, those that may be the
               best by the surrogate's bound are measured
    refinement rounds of the masks of the wanted size with the highest expected improvement, among swaps of the best
               masks, additions to the chain, and the best masks that the surrogate predicts

The surrogate (`surrogate/expansion.py`) is fitted after every step to all measured losses, with most trust near the
wanted size. On a model, masks first race each other on few windows (`search/measurements.py`). The search ends when no
mask is expected to gain more than `TOLERANCE`, or more than a tenth of the standard error, over windows of text, of the
difference between the two best masks.

The result also holds the best masks of smaller sizes (`details["path"]`) and how certain the choice is: the share of
resampled windows on which the runner-up is better.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.base import Asked, Choice, finite_or_none, search_method, worst_last
from layercoop_fast.search.belief import Belief
from layercoop_fast.search.chains import best_chain
from layercoop_fast.search.measurements import MeasuredMask, Measurements
from layercoop_fast.search.proposals import (
    additions,
    choose,
    expected_improvement,
    fitted,
    predicted_best,
    predicted_covers,
    swaps,
)
from layercoop_fast.search.target import Target

# A mask of less expected improvement is not measured, in nats.
TOLERANCE = 5e-4
SPENT = "the budget is spent"
# Masks measured at once: in a step of the chain, and in a round of refinement.
_CHAIN_BATCH, _ROUND = 3, 8
# Masks that additions start from, and masks that swaps start from.
_PARENTS, _INCUMBENTS = 3, 4
# The chain measures masks whose expected loss is within this many standard deviations of the best measured one.
_BOUND = 1.0
# When the surrogate expects no gain, this many more rounds are done, each with variances multiplied by the factor.
_DOUBTS, _DOUBT = 3, 4.0
# Most candidates of a round, and how many of highest expected improvement among them get a covariance.
_LOOKED_AT, _SHORTLIST = 1500, 256
# Climbs on the surrogate from random masks.
_CLIMBS = 4
# Candidates of a round that are changed to meet an unequal target.
_FITTED = 400
# Random masks among the candidates of a round, while no wanted mask is measured yet.
_AT_RANDOM = 64


@search_method
def search(asked: Asked) -> Choice:
    """Choose `n_remove` players to remove; the answer is the best mask measured on all windows.

    `budget` is the number of distinct masks that may be measured, even if only on some windows: by default n +
    8·n_remove + 120, which is rarely spent. Only the answer has to be `allowed`. `seed` decides between equally good
    proposals. Progress counts masks against the budget. Raises `RequestError` for a budget below n_players + 1, and
    where no mask is allowed.
    """
    return search_for(asked, Target.of_count(asked.n, asked.n_remove))


def search_for(asked: Asked, target: Target) -> Choice:
    """As `search`, for a target that may be a sum of costs: a knapsack problem where the players' costs are unequal.

    The chain then adds players by loss and cost: what is still to be saved counts at the loss per cost of the best mask
    known. The default `budget` is that of the number of players of mean cost that meet the target.
    """
    most = default_budget(asked.n, target.size) if asked.budget is None else asked.budget
    if most < asked.n + 1:
        raise RequestError(
            "coop measures every player alone and then masks of the size: it needs a budget of at least "
            f"{asked.n + 1}, not {most}"
        )
    run = Run(asked, Measurements(asked.game, asked.n, most), target, np.random.default_rng(asked.seed))
    run.seeds()
    run.chain()
    stopped = run.refine()
    return run.choice(stopped)


def default_budget(n_players: int, n_remove: int) -> int:
    """Number of masks that a search may measure by default."""
    return n_players + 8 * n_remove + 120


class Run:
    """One search.

    Attributes:
        measurements: of the search.
        n: number of players.
        belief: the surrogate of the measurements.
        expected_gain: the highest expected improvement in the latest round.
    """

    def __init__(self, asked: Asked, measurements: Measurements, target: Target, rng: np.random.Generator) -> None:
        self.measurements, self.target, self.allowed, self.rng = measurements, target, asked.allowed, rng
        self.n = asked.n
        self._asked = asked
        self.belief = Belief(measurements, target)
        self.expected_gain = math.inf
        self._seeds: list[tuple[str, Masks]] = []
        self._chances: dict[tuple[bytes, bytes], float | None] = {}

    def seeds(self) -> None:
        """Measure every player alone, and the masks that the one-pass methods choose."""
        target, singles = self.target, ~np.eye(self.n, dtype=np.bool_)
        # Masks that save different amounts do not race each other.
        self.measurements.measure(singles, race=target.n_remove is not None)
        alone = np.array([self.measurements.expected(self.measurements.entries[mask.tobytes()]) for mask in singles])
        ranks = np.empty(self.n)
        ranks[np.argsort(alone, kind="stable")] = np.arange(self.n)
        found = [("ppl", target.least_valuable(ranks, self.allowed))]
        if target.n_remove is None:
            by_cost = worst_last(alone) / np.maximum(target.costs, 1e-300)
            found.append(("ppl by cost", target.least_valuable(by_cost, self.allowed)))
        game = self.measurements.game
        if hasattr(game, "block_influence"):
            influence = worst_last(np.asarray(game.block_influence()))
            found.append(("shortgpt", target.least_valuable(influence, self.allowed)))
        if target.n_remove is not None and getattr(game, "n_windows", None):
            with suppress(RequestError):  # groups of blocks that are not contiguous have no angular distances
                first = int(np.argmin(game.angular_distances(target.n_remove)))
                contiguous = np.ones(self.n, dtype=np.bool_)
                contiguous[first : first + target.n_remove] = False
                found.append(("angular", contiguous))
        self._seeds = [(name, mask) for name, mask in found if self._is_allowed(mask)]
        self.measurements.measure(np.stack([mask for _, mask in self._seeds]))
        self._report()

    def chain(self) -> None:
        """Lazy greedy: masks of each size by additions to the best of the previous size, until they meet the target."""
        for size in range(2, self.n):
            parents = self._parents(size - 1)
            if not parents:
                break
            candidates = self._new(additions(parents))
            # A first batch, and a second one if an unmeasured mask may still be better than the best measured one.
            for _ in range(2):
                if not len(candidates) or self.measurements.left <= 0:
                    break
                means, deviations = self.belief.expect(candidates)
                bounds = means - _BOUND * deviations + self._still_due(candidates)
                best = self._by_price(size)[:1]
                limit = best[0].loss + self._still_due(best[0].mask[None])[0] if best else math.inf
                promising = self._leading(candidates, np.argsort(bounds, kind="stable"), _CHAIN_BATCH)
                promising = [row for row in promising if bounds[row] < limit]
                if not promising:
                    break
                equal = self.target.n_remove is not None
                self.belief.ask(candidates, promising, best[0] if best and equal else None, race=equal)
                candidates = self._new(candidates)
            self._report()

    def refine(self) -> str:
        """Do rounds of expected improvement at the wanted size; return why they ended."""
        quiet = 0  # consecutive rounds without expected gain that found no better mask either
        while self.measurements.left > 0:
            incumbents = self.finalists()
            candidates = self._candidates([entry.mask for entry in incumbents[:_INCUMBENTS]])
            if not len(candidates):
                self.expected_gain = 0.0
                return "every mask near the best is measured"
            means, deviations = self.belief.expect(candidates)
            rival = incumbents[0] if incumbents else None
            to_beat = math.inf if rival is None else rival.loss
            self.expected_gain = float(expected_improvement(means, deviations, to_beat).max())
            if rival is None or self.expected_gain >= self._worthwhile(incumbents):
                quiet = 0
            elif quiet == _DOUBTS:
                return "no mask is expected to gain more than the text can tell"
            # The surrogate may be too certain: before the search ends, rounds are done with larger deviations.
            gains = expected_improvement(means, deviations * math.sqrt(_DOUBT**quiet), to_beat)
            candidates = candidates[np.argsort(-gains, kind="stable")[:_SHORTLIST]]
            means, covariance = self.belief.predict(candidates)
            doubted = covariance * _DOUBT**quiet
            self.belief.ask(candidates, choose(means, doubted, to_beat, self.belief.fit.noise, _ROUND), rival)
            quiet = quiet + 1 if _same(self.finalists(), incumbents) else 0
            self._report()
        return SPENT

    def choice(self, stopped: str, best: MeasuredMask | None = None) -> Choice:
        """The result of the search.

        Args:
            stopped: why the search ended.
            best: the mask to choose; by default the best measured one of the wanted size.

        Raises `RunError` where all losses are infinite, and `RequestError` where no measured mask is wanted.
        """
        finalists = self.finalists()
        if not finalists and not any(math.isfinite(entry.loss) for entry in self.measurements.entries.values()):
            raise RunError(
                f"all {len(self.measurements.entries)} measured masks have losses that are not finite: there is no "
                "basis for a choice"
            )
        if not finalists:
            count = "enough" if self.target.n_remove is None else self.target.n_remove
            raise RequestError(
                f"no measured mask that removes {count} of {self.n} players is allowed and finite "
                f"({len(self.measurements.entries)} were measured): give a larger budget"
            )
        best = finalists[0] if best is None else best
        others = [entry for entry in finalists if entry is not best]
        values, stderr = self.belief.fit.values()
        details: dict[str, Any] = {
            "stopped": stopped,
            "loss": finite_or_none(best.loss),
            "expected_gain": finite_or_none(self.expected_gain),
            "measured_in_full": sum(entry.whole for entry in self.measurements.entries.values()),
            "values_stderr": stderr.tolist(),
            "path": self._path(best),
            "seeds": [
                {"method": name, **self._step(entry)}
                for name, mask in self._seeds
                if (entry := self.measurements.entries.get(mask.tobytes())) is not None and entry.whole
            ],
            "interactions": _triangle(self.belief.fit.pairs),
            "interactions_stderr": _triangle(self.belief.fit.pairs_stderr()),
            "alternatives": self._alternatives(best, others),
            "forecasts": self._forecasts(),
            "nested": self._nested(best),
        }
        if others:
            details["runner_up"] = np.flatnonzero(~others[0].mask).tolist()
            details["runner_up_loss"] = finite_or_none(others[0].loss)
            details["runner_up_better"] = self._chance(best, others[0])
        return Choice(best.mask, "coop", values, len(self.measurements.entries), details)

    def _path(self, best: MeasuredMask) -> list[dict[str, Any]]:
        """The best measured mask of each smaller size from which an allowed mask can be reached, and the answer."""
        path = []
        for size in range(1, int((~best.mask).sum())):
            entries = (entry for entry in self._by_price(size) if not self.target.met(entry.mask))
            found = next((entry for entry in entries if self.target.leads_on(entry.mask, self.allowed)), None)
            path += [] if found is None else [self._step(found)]
        return [*path, self._step(best)]

    def _alternatives(self, best: MeasuredMask, others: list[MeasuredMask]) -> list[dict[str, Any]]:
        """For each player that the best mask removes, the best other mask that keeps it, where there is one."""
        found = []
        for player in np.flatnonzero(~best.mask).tolist():
            for entry in [entry for entry in others if entry.mask[player]][:1]:
                removed = np.flatnonzero(~entry.mask).tolist()
                loss = {"loss": finite_or_none(entry.loss), "better": self._chance(best, entry)}
                found.append({"keeps": player, "removed": removed, **loss})
        return found

    def _forecasts(self) -> dict[str, list[Any]]:
        """Expected losses of masks before they were measured, and their measured losses, as columns."""
        names = ("n_removed", "expected", "stderr", "measured")
        rows = [(size, *(_short(value) for value in values)) for size, *values in self.belief.forecasts]
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def _nested(self, best: MeasuredMask) -> list[dict[str, Any]]:
        """A nested family of measured masks that ends in the best: each removes what the previous one removes and more.

        It leaves out as few sizes as possible, and has the least sum of losses of all such families.
        """
        within = self.measurements.whole(lambda mask: not (best.mask & ~mask).any())
        sizes: dict[int, list[MeasuredMask]] = {}
        for entry in within:
            if math.isfinite(entry.loss):
                sizes.setdefault(int((~entry.mask).sum()), []).append(entry)
        return [self._step(entry) for entry in best_chain([sizes[size] for size in sorted(sizes)])]

    def _step(self, entry: MeasuredMask) -> dict[str, Any]:
        removed = np.flatnonzero(~entry.mask).tolist()
        step = {"n_removed": len(removed), "removed": removed, "loss": finite_or_none(entry.loss)}
        return step if self.target.n_remove is not None else {**step, "saved": self.target.saved(entry.mask)}

    def _chance(self, best: MeasuredMask, other: MeasuredMask) -> float | None:
        """Share of resampled windows on which the other mask is better; None where there are no windows."""
        domains, objective = self.measurements.domains, self.measurements.objective
        # On a game without windows there is only one loss.
        if len(best.windows) < 2:
            return None
        pair = (best.mask.tobytes(), other.mask.tobytes())
        if pair not in self._chances:  # drawn once, so that all parts of the result state the same share
            self._chances[pair] = probability_better(
                best.windows, other.windows, rng=self.rng, domains=domains, objective=objective
            )
        return self._chances[pair]

    def _worthwhile(self, incumbents: list[MeasuredMask]) -> float:
        """The gain that is worth another round."""
        if len(incumbents) < 2 or len(incumbents[0].windows) < 2:
            return TOLERANCE
        stderr = self.measurements.stderr_between(incumbents[1], incumbents[0])
        return max(TOLERANCE, 0.1 * stderr) if math.isfinite(stderr) else TOLERANCE

    def _candidates(self, incumbents: list[Masks]) -> Masks:
        """Wanted masks near the best ones, bool [M, n], none of them measured."""
        target = self.target
        incumbents = incumbents or [self._at_random() for _ in range(_AT_RANDOM)]
        found = [*incumbents, *swaps(incumbents)]
        if target.n_remove is not None:
            if target.n_remove > 1:
                found += [
                    *additions([entry.mask for entry in self.measurements.of_size(target.n_remove - 1)[:_PARENTS]])
                ]
            starts = [*incumbents[:1], *(self._at_random() for _ in range(_CLIMBS))]
            found += [*predicted_best(self.belief.fit, starts, self.allowed)]
        else:
            found += [*additions(incumbents)]
            rows = self.rng.permutation(len(found))[:_FITTED]
            fit = self.belief.fit
            found = [fitted(fit, target, found[row], self.allowed) for row in rows]
            found += [*predicted_covers(fit, target, self.allowed, self.rng)]
        # Masks that could not be changed to meet the target would look good, but cannot be the answer.
        found = [mask for mask in found if target.met(mask)]
        return self._new(np.array(found, dtype=np.bool_).reshape(-1, self.n))

    def _at_random(self) -> Masks:
        return self.target.least_valuable(self.rng.random(self.n), self.allowed)

    def _new(self, masks: Masks) -> Masks:
        """The distinct masks that are not measured yet, at most `_LOOKED_AT`, those of least expected loss.

        Masks that meet the target are left out unless they are wanted.
        """
        if len(masks) > _LOOKED_AT:
            masks = masks[np.argsort(self.belief.fit.mean(~masks), kind="stable")]
        fresh: dict[bytes, Masks] = {}
        for mask in masks:
            if not mask.any() or self.measurements.knows(mask) or mask.tobytes() in fresh:
                continue
            if not self.target.met(mask) or self._is_wanted(mask):
                fresh[mask.tobytes()] = mask
                if len(fresh) == _LOOKED_AT:
                    break
        return np.array(list(fresh.values()), dtype=np.bool_).reshape(-1, self.n)

    def _parents(self, size: int) -> list[Masks]:
        """The best measured masks of a size that do not meet the target yet, but lead to an allowed one."""
        entries = [entry.mask for entry in self._by_price(size) if not self.target.met(entry.mask)]
        rows = self._leading(np.array(entries, dtype=np.bool_).reshape(-1, self.n), np.arange(len(entries)), _PARENTS)
        return [entries[row] for row in rows]

    def _leading(self, masks: Masks, order: Any, count: int) -> list[int]:
        """The first `count` rows, in this order, from which an allowed mask can be reached by more removals."""
        return list(islice((int(row) for row in order if self.target.leads_on(masks[row], self.allowed)), count))

    def _by_price(self, size: int) -> list[MeasuredMask]:
        """Measured masks of a size, in order of the loss expected once the target is met."""
        entries = self.measurements.of_size(size)
        if self.target.n_remove is not None or not entries:
            return entries
        due = self._still_due(np.stack([entry.mask for entry in entries]))
        losses = np.array([entry.loss for entry in entries]) + due
        return [entries[row] for row in np.argsort(losses, kind="stable")]

    def _still_due(self, masks: Masks) -> Any:
        """The loss of saving the rest, float64 [M], for masks (bool [M, n]), at the loss per cost of the best mask."""
        if self.target.n_remove is not None:
            return np.zeros(len(masks))
        known = self.finalists()[:1]
        price = max(known[0].loss, 0.0) / self.target.saved(known[0].mask) if known else 0.0
        return price * np.maximum(self.target.least - ~masks @ self.target.costs, 0.0)

    def finalists(self) -> list[MeasuredMask]:
        """Wanted masks that were measured in full and are finite, best first."""
        return [entry for entry in self.measurements.whole(self._is_wanted) if math.isfinite(entry.loss)]

    def _is_wanted(self, mask: Masks) -> bool:
        return self.target.wants(mask) and self._is_allowed(mask)

    def _is_allowed(self, mask: Masks) -> bool:
        return self.allowed is None or self.allowed.check(mask) is None

    def _report(self) -> None:
        self._asked.report("masks measured", len(self.measurements.entries), self.measurements.budget)


def _triangle(pairs: Floats) -> list[list[float | None]]:
    """The upper triangle of [n, n] without the diagonal, row by row, at five digits."""
    return [[_short(value) for value in row[first + 1 :]] for first, row in enumerate(pairs.tolist())]


def _short(value: float) -> float | None:
    return finite_or_none(float(f"{value:.5g}"))


def _same(entries: list[MeasuredMask], others: list[MeasuredMask]) -> bool:
    """Whether the same mask leads both lists."""
    return [entry.mask.tobytes() for entry in entries[:1]] == [entry.mask.tobytes() for entry in others[:1]]
