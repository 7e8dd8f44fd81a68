"""Ours: measured where it matters, led by a surrogate that knows how sure it is, until the gain left is noise.

    seeds      every player alone, and the masks of the rules that need one pass (shortgpt, angular, ppl)
    chain      one more player at a time: of the additions to the best masks so far, those that may be the best by the
               surrogate's bound are measured, and no others (greed, but lazy)
    refinement rounds of the masks of the wanted size with the highest expected improvement, among swaps of the best,
               additions to the chain, and the best that the surrogate predicts

The surrogate (`surrogate/expansion.py`) is fitted again after every step to everything measured, on the scale of losses
and with most trust near the size that is wanted. On a model masks race each other on few windows first
(`search/measurements.py`). The search ends when no mask is expected to gain more than `TOLERANCE`, or more than a tenth
of the standard error that the text leaves between the two best.

The sizes on the way are answered too (`details["path"]`), and so is how sure the choice is: the share of resampled
windows on which the runner-up is better.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, finite_or_none, worst_last
from layercoop_fast.search.belief import Belief
from layercoop_fast.search.chains import best_chain
from layercoop_fast.search.measurements import Entry, Measurements
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

# Expected improvement below which a mask is not worth measuring, in nats.
TOLERANCE = 5e-4
SPENT = "the budget is spent"
# Masks measured at once, in a step of the chain and in a round of refinement.
_CHAIN_BATCH, _ROUND = 3, 8
# Masks that additions and swaps start from.
_PARENTS, _INCUMBENTS = 3, 4
# The chain measures what is within so many standard deviations of the best measured.
_BOUND = 1.0
# Rounds that a surrogate which expects no gain is doubted for, and the factor of each on its variances.
_DOUBTS, _DOUBT = 3, 4.0
# Candidates of a round at most, and of them those whose covariance is looked at: those of highest expected improvement.
_LOOKED_AT, _SHORTLIST = 1500, 256
# Climbs on the surrogate that begin anywhere.
_CLIMBS = 4
# Candidates that are made to fit an unequal target in a round.
_FITTED = 400
# Masks drawn at random among the candidates of a round, where nothing good is known yet.
_AT_RANDOM = 64


def search(
    game: Game,
    n_remove: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Choose `n_remove` players to remove; the answer is the best mask measured (on all windows).

    `budget` is how many distinct masks may be measured, on however few windows; n + 8·n_remove + 120 unless given,
    which is rarely spent. Only the answer has to be `allowed`. `seed` decides between proposals that are equally good.
    Progress goes by the budget. Raises `RequestError` for a budget below n_players + 1, and when nothing is allowed.
    """
    n = n_players_of(game)
    check_n_remove(n, n_remove)
    target = Target.of_count(n, n_remove)
    return search_for(game, target, seed=seed, budget=budget, allowed=allowed, progress=progress)


def search_for(
    game: Game,
    target: Target,
    *,
    seed: int = 0,
    budget: int | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> Choice:
    """As `search`, for players that save so much together: a knapsack where their costs are unequal.

    The chain then adds players by loss and cost, a cost counting at the price of the best mask known, and `budget`
    goes by as many players as it takes of mean cost.
    """
    n, n_remove = n_players_of(game), target.size
    most = default_budget(n, n_remove) if budget is None else budget
    if most < n + 1:
        raise RequestError(
            f"coop measures every player alone first and then masks of the size: a budget of {n + 1} at least, "
            f"not {most}"
        )
    run = Run(Measurements(game, n, most), target, allowed, np.random.default_rng(seed), progress)
    run.seeds()
    run.chain()
    stopped = run.refine()
    return run.choice(stopped)


def default_budget(n_players: int, n_remove: int) -> int:
    """Masks that a search may measure unless it is told: rarely spent."""
    return n_players + 8 * n_remove + 120


class Run:
    """One search: what it measured, and how it goes on."""

    def __init__(
        self,
        ledger: Measurements,
        target: Target,
        allowed: Allowed | None,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> None:
        self.ledger, self.target, self.allowed, self.rng = ledger, target, allowed, rng
        self.n = ledger.n_players
        self._progress = progress
        self.belief = Belief(ledger, target)
        self.expected_gain = math.inf
        self._seeds: list[tuple[str, Masks]] = []
        self._chances: dict[tuple[bytes, bytes], float | None] = {}

    def seeds(self) -> None:
        """Measure every player alone, and what the one-pass rules choose."""
        target, singles = self.target, ~np.eye(self.n, dtype=np.bool_)
        # Masks that save different amounts do not race each other.
        self.ledger.measure(singles, race=target.n_remove is not None)
        alone = np.array([self.ledger.expected(self.ledger.entries[mask.tobytes()]) for mask in singles])
        ranks = np.empty(self.n)
        ranks[np.argsort(alone, kind="stable")] = np.arange(self.n)
        found = [("ppl", target.least_valuable(ranks, self.allowed))]
        if target.n_remove is None:
            by_cost = worst_last(alone) / np.maximum(target.costs, 1e-300)
            found.append(("ppl by cost", target.least_valuable(by_cost, self.allowed)))
        game = self.ledger.game
        if hasattr(game, "block_influence"):
            influence = worst_last(np.asarray(game.block_influence()))
            found.append(("shortgpt", target.least_valuable(influence, self.allowed)))
        if target.n_remove is not None and getattr(game, "n_windows", None):
            with suppress(RequestError):  # groups of players that do not follow each other have no runs
                first = int(np.argmin(game.angular_distances(target.n_remove)))
                run = np.ones(self.n, dtype=np.bool_)
                run[first : first + target.n_remove] = False
                found.append(("angular", run))
        self._seeds = [(name, mask) for name, mask in found if self._is_allowed(mask)]
        self.ledger.measure(np.stack([mask for _, mask in self._seeds]))
        self._report()

    def chain(self) -> None:
        """Lazy greed: masks of each size by additions to the best of the size before, until they meet the target."""
        for size in range(2, self.n):
            parents = self._parents(size - 1)
            if not parents:
                break
            candidates = self._new(additions(parents))
            # A first batch, and a second if something unmeasured may still be better than the best measured.
            for _ in range(2):
                if not len(candidates) or self.ledger.left <= 0:
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
        """Rounds of expected improvement at the wanted size; returns why they ended."""
        quiet = 0  # rounds in a row that nothing was expected of, and that brought nothing
        while self.ledger.left > 0:
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
            # The surrogate may be too sure of itself: before it is believed it is asked with larger deviations.
            gains = expected_improvement(means, deviations * math.sqrt(_DOUBT**quiet), to_beat)
            candidates = candidates[np.argsort(-gains, kind="stable")[:_SHORTLIST]]
            means, covariance = self.belief.predict(candidates)
            doubted = covariance * _DOUBT**quiet
            self.belief.ask(candidates, choose(means, doubted, to_beat, self.belief.fit.noise, _ROUND), rival)
            quiet = quiet + 1 if _same(self.finalists(), incumbents) else 0
            self._report()
        return SPENT

    def choice(self, stopped: str, best: Entry | None = None) -> Choice:
        """The best mask of the wanted size, or another of it, and what there is to say about it."""
        finalists = self.finalists()
        if not finalists and not any(math.isfinite(entry.loss) for entry in self.ledger.entries.values()):
            raise RunError(
                f"the losses, against the full model, of all {len(self.ledger.entries)} masks that were measured are "
                "not finite: there is nothing to choose by"
            )
        if not finalists:
            raise RequestError(
                f"of {len(self.ledger.entries)} measured masks none that removes {self._asked} of {self.n} players "
                "is allowed and finite: give a larger budget"
            )
        best = finalists[0] if best is None else best
        others = [entry for entry in finalists if entry is not best]
        values, stderr = self.belief.fit.values()
        details: dict[str, Any] = {
            "stopped": stopped,
            "loss": finite_or_none(best.loss),
            "expected_gain": finite_or_none(self.expected_gain),
            "measured_in_full": sum(entry.whole for entry in self.ledger.entries.values()),
            "values_stderr": stderr.tolist(),
            "path": self._path(best),
            "seeds": [
                {"method": name, **self._step(entry)}
                for name, mask in self._seeds
                if (entry := self.ledger.entries.get(mask.tobytes())) is not None and entry.whole
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
        return Choice(best.mask, "coop", values, len(self.ledger.entries), details)

    def _path(self, best: Entry) -> list[dict[str, Any]]:
        """The best measured mask of each smaller size that leads to what is allowed, and then the answer."""
        path = []
        for size in range(1, int((~best.mask).sum())):
            entries = (entry for entry in self._by_price(size) if not self.target.met(entry.mask))
            found = next((entry for entry in entries if self.target.leads_on(entry.mask, self.allowed)), None)
            path += [] if found is None else [self._step(found)]
        return [*path, self._step(best)]

    def _alternatives(self, best: Entry, others: list[Entry]) -> list[dict[str, Any]]:
        """For each player that the best removes, the best of the others that keeps it, where there is one."""
        found = []
        for player in np.flatnonzero(~best.mask).tolist():
            for entry in [entry for entry in others if entry.mask[player]][:1]:
                removed = np.flatnonzero(~entry.mask).tolist()
                loss = {"loss": finite_or_none(entry.loss), "better": self._chance(best, entry)}
                found.append({"keeps": player, "removed": removed, **loss})
        return found

    def _forecasts(self) -> dict[str, list[Any]]:
        """What the surrogate expected of masks before they were measured, and what they lost: a column each."""
        names = ("n_removed", "expected", "stderr", "measured")
        rows = [(size, *(_short(value) for value in values)) for size, *values in self.belief.forecasts]
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def _nested(self, best: Entry) -> list[dict[str, Any]]:
        """Of the measured masks a family, each removing what the one before removes, that ends in the best.

        Of all such families that with the least sum of losses; sizes without a measured mask that fits are left out,
        as few as possible.
        """
        within = self.ledger.whole(lambda mask: not (best.mask & ~mask).any())
        sizes: dict[int, list[Entry]] = {}
        for entry in within:
            if math.isfinite(entry.loss):
                sizes.setdefault(int((~entry.mask).sum()), []).append(entry)
        return [self._step(entry) for entry in best_chain([sizes[size] for size in sorted(sizes)])]

    def _step(self, entry: Entry) -> dict[str, Any]:
        removed = np.flatnonzero(~entry.mask).tolist()
        step = {"n_removed": len(removed), "removed": removed, "loss": finite_or_none(entry.loss)}
        return step if self.target.n_remove is not None else {**step, "saved": self.target.saved(entry.mask)}

    def _chance(self, best: Entry, other: Entry) -> float | None:
        """Share of resampled windows on which the other mask is better; None where there are no windows."""
        domains, objective = self.ledger.domains, self.ledger.objective
        # Without windows an entry has its loss alone.
        if len(best.windows) < 2:
            return None
        pair = (best.mask.tobytes(), other.mask.tobytes())
        if pair not in self._chances:  # drawn once: a mask is not said to be better by two shares
            self._chances[pair] = probability_better(
                best.windows, other.windows, rng=self.rng, domains=domains, objective=objective
            )
        return self._chances[pair]

    def _worthwhile(self, incumbents: list[Entry]) -> float:
        """The gain below which masks are not told apart."""
        if len(incumbents) < 2 or len(incumbents[0].windows) < 2:
            return TOLERANCE
        stderr = self.ledger.stderr_between(incumbents[1], incumbents[0])
        return max(TOLERANCE, 0.1 * stderr) if math.isfinite(stderr) else TOLERANCE

    def _candidates(self, incumbents: list[Masks]) -> Masks:
        """Wanted masks that are near what is good, bool [M, n], none of them measured."""
        target = self.target
        incumbents = incumbents or [self._at_random() for _ in range(_AT_RANDOM)]
        found = [*incumbents, *swaps(incumbents)]
        if target.n_remove is not None:
            if target.n_remove > 1:
                found += [*additions([entry.mask for entry in self.ledger.of_size(target.n_remove - 1)[:_PARENTS]])]
            starts = [*incumbents[:1], *(self._at_random() for _ in range(_CLIMBS))]
            found += [*predicted_best(self.belief.fit, starts, self.allowed)]
        else:
            found += [*additions(incumbents)]
            rows = self.rng.permutation(len(found))[:_FITTED]
            fit = self.belief.fit
            found = [fitted(fit, target, found[row], self.allowed) for row in rows]
            found += [*predicted_covers(fit, target, self.allowed, self.rng)]
        # What could not be filled up to the target loses little, and is no answer.
        found = [mask for mask in found if target.met(mask)]
        return self._new(np.array(found, dtype=np.bool_).reshape(-1, self.n))

    def _at_random(self) -> Masks:
        return self.target.least_valuable(self.rng.random(self.n), self.allowed)

    def _new(self, masks: Masks) -> Masks:
        """Those not measured yet, once each; of those that meet the target only the wanted.

        Of many only `_LOOKED_AT`, those of least expected loss.
        """
        if len(masks) > _LOOKED_AT:
            masks = masks[np.argsort(self.belief.fit.mean(~masks), kind="stable")]
        fresh: dict[bytes, Masks] = {}
        for mask in masks:
            if not mask.any() or self.ledger.knows(mask) or mask.tobytes() in fresh:
                continue
            if not self.target.met(mask) or self._is_wanted(mask):
                fresh[mask.tobytes()] = mask
                if len(fresh) == _LOOKED_AT:
                    break
        return np.array(list(fresh.values()), dtype=np.bool_).reshape(-1, self.n)

    def _parents(self, size: int) -> list[Masks]:
        """The best measured masks of a size that do not meet the target yet and that lead to an allowed one."""
        entries = [entry.mask for entry in self._by_price(size) if not self.target.met(entry.mask)]
        rows = self._leading(np.array(entries, dtype=np.bool_).reshape(-1, self.n), np.arange(len(entries)), _PARENTS)
        return [entries[row] for row in rows]

    def _leading(self, masks: Masks, order: Any, count: int) -> list[int]:
        """The first `count` rows, in this order, from which more removals lead to an allowed mask."""
        return list(islice((int(row) for row in order if self.target.leads_on(masks[row], self.allowed)), count))

    def _by_price(self, size: int) -> list[Entry]:
        """Entries of a size, those first that will have lost least once the target is met."""
        entries = self.ledger.of_size(size)
        if self.target.n_remove is not None or not entries:
            return entries
        due = self._still_due(np.stack([entry.mask for entry in entries]))
        losses = np.array([entry.loss for entry in entries]) + due
        return [entries[row] for row in np.argsort(losses, kind="stable")]

    def _still_due(self, masks: Masks) -> Any:
        """What saving the rest will cost masks (bool [M, n]) at the price of the best that is known, float64 [M]."""
        if self.target.n_remove is not None:
            return np.zeros(len(masks))
        known = self.finalists()[:1]
        price = max(known[0].loss, 0.0) / self.target.saved(known[0].mask) if known else 0.0
        return price * np.maximum(self.target.least - ~masks @ self.target.costs, 0.0)

    def finalists(self) -> list[Entry]:
        """Wanted masks that were measured in full and are finite, best first."""
        return [entry for entry in self.ledger.whole(self._is_wanted) if math.isfinite(entry.loss)]

    def _is_wanted(self, mask: Masks) -> bool:
        return self.target.wants(mask) and self._is_allowed(mask)

    @property
    def _asked(self) -> str:
        return "enough" if self.target.n_remove is None else str(self.target.n_remove)

    def _is_allowed(self, mask: Masks) -> bool:
        return self.allowed is None or self.allowed.check(mask) is None

    def _report(self) -> None:
        if self._progress is not None:
            self._progress("masks measured", len(self.ledger.entries), self.ledger.budget)


def _triangle(pairs: Floats) -> list[list[float | None]]:
    """What stands right of the diagonal of [n, n], row by row, at five digits."""
    return [[_short(value) for value in row[first + 1 :]] for first, row in enumerate(pairs.tolist())]


def _short(value: float) -> float | None:
    return finite_or_none(float(f"{value:.5g}"))


def _same(entries: list[Entry], others: list[Entry]) -> bool:
    """Whether the same mask leads both lists."""
    return [entry.mask.tobytes() for entry in entries[:1]] == [entry.mask.tobytes() for entry in others[:1]]
