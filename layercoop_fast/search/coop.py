"""Ours: measured where it matters, led by a surrogate that knows how sure it is, until the gain left is noise.

    seeds      every player alone, and the masks of the rules that need one pass (shortgpt, angular, ppl)
    chain      one more player at a time: of the additions to the best masks so far, those that may be the best by the
               surrogate's bound are measured, and no others (greed, but lazy)
    refinement rounds of the masks of the wanted size with the highest expected improvement, among swaps of the best,
               additions to the chain, and the best that the surrogate predicts

The surrogate (`surrogate/expansion.py`) is fitted anew after every step to everything measured, on the scale of losses
and with most trust near the size that is wanted. On a model masks race each other on few windows first
(`search/ledger.py`). The search ends when no mask is expected to gain more than `TOLERANCE`, or than a tenth of the
standard error that the text leaves between the two best.

The sizes on the way are answered too (`details["path"]`), and so is how sure the choice is: the share of resampled
windows on which the runner-up is better.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.bootstrap import probability_better
from layercoop_fast.game.protocol import Floats, Game, Masks, Progress, n_players_of
from layercoop_fast.search.base import Allowed, Choice, check_n_remove, finite_or_none, least_valuable
from layercoop_fast.search.belief import Belief
from layercoop_fast.search.ledger import Entry, Ledger
from layercoop_fast.search.proposals import additions, choose, expected_improvement, predicted_best, swaps

# Expected improvement below which a mask is not worth measuring, in nats.
TOLERANCE = 5e-4
# Masks measured at once, in a step of the chain and in a round of refinement.
_CHAIN_BATCH, _ROUND = 3, 8
# Masks that additions and swaps start from.
_PARENTS, _INCUMBENTS = 3, 4
# The chain measures what is within so many standard deviations of the best measured.
_BOUND = 1.0
# Rounds that a surrogate which expects no gain is doubted for, and the factor of each on its variances.
_DOUBTS, _DOUBT = 3, 4.0
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
    most = n + 8 * n_remove + 120 if budget is None else budget
    if most < n + 1:
        raise RequestError(
            f"coop measures every player alone first and then masks of the size: a budget of {n + 1} at least, "
            f"not {most}"
        )
    run = _Run(Ledger(game, n, most), n_remove, allowed, np.random.default_rng(seed), progress)
    run.seeds()
    run.chain()
    stopped = run.refine()
    return run.choice(stopped)


class _Run:
    """One search."""

    def __init__(
        self,
        ledger: Ledger,
        n_remove: int,
        allowed: Allowed | None,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> None:
        self.ledger, self.n_remove, self.allowed, self.rng = ledger, n_remove, allowed, rng
        self.n = ledger.n_players
        self._progress = progress
        self.belief = Belief(ledger, n_remove)
        self.expected_gain = math.inf

    def seeds(self) -> None:
        """Measure every player alone, and what the one-pass rules choose."""
        singles = ~np.eye(self.n, dtype=np.bool_)
        self.ledger.measure(singles)
        alone = np.array([self.ledger.entries[mask.tobytes()].loss for mask in singles])
        ranks = np.empty(self.n)
        ranks[np.argsort(alone, kind="stable")] = np.arange(self.n)
        found = [least_valuable(ranks, self.n_remove, self.allowed)]
        game = self.ledger.game
        if hasattr(game, "block_influence"):
            found.append(least_valuable(np.asarray(game.block_influence()), self.n_remove, self.allowed))
        if getattr(game, "has_windows", False):
            angles = np.asarray(game.angular_distances(self.n_remove))
            run = np.ones(self.n, dtype=np.bool_)
            first = int(angles.argmin())
            run[first : first + self.n_remove] = False
            found.append(run)
        self.ledger.measure(np.stack([mask for mask in found if self._is_allowed(mask)]))
        self._report()

    def chain(self) -> None:
        """Lazy greed: the best mask of each size up to the wanted one, by additions to the best of the size before."""
        for size in range(2, self.n_remove + 1):
            parents = [entry.mask for entry in self.ledger.of_size(size - 1)[:_PARENTS]]
            candidates = self._new(additions(parents), size)
            # A first batch, and a second if something unmeasured may still be better than the best measured.
            for _ in range(2):
                if not len(candidates) or self.ledger.left <= 0:
                    break
                means, covariance = self.belief.predict(candidates)
                bounds = means - _BOUND * np.sqrt(np.maximum(np.diag(covariance), 0.0))
                best = self.ledger.of_size(size)[:1]
                promising = np.argsort(bounds, kind="stable")[:_CHAIN_BATCH]
                if best:
                    promising = promising[bounds[promising] < best[0].loss]
                if not len(promising):
                    break
                self.belief.ask(candidates, promising.tolist(), best[0] if best else None)
                candidates = self._new(candidates, size)
            self._report()

    def refine(self) -> str:
        """Rounds of expected improvement at the wanted size; returns why they ended."""
        quiet = 0  # rounds in a row that nothing was expected of, and that brought nothing
        while self.ledger.left > 0:
            incumbents = self._finalists()
            candidates = self._candidates([entry.mask for entry in incumbents[:_INCUMBENTS]])
            if not len(candidates):
                self.expected_gain = 0.0
                return "every mask near the best is measured"
            means, covariance = self.belief.predict(candidates)
            rival = incumbents[0] if incumbents else None
            to_beat = math.inf if rival is None else rival.loss
            self.expected_gain = float(expected_improvement(means, covariance, to_beat).max())
            if rival is None or self.expected_gain >= self._worthwhile(incumbents):
                quiet = 0
            elif quiet == _DOUBTS:
                return "no mask is expected to gain more than the text can tell"
            # The surrogate may be too sure of itself: before it is believed it is asked with larger deviations.
            doubted = covariance * _DOUBT**quiet
            self.belief.ask(candidates, choose(means, doubted, to_beat, self.belief.fit.noise, _ROUND), rival)
            quiet = quiet + 1 if _same(self._finalists(), incumbents) else 0
            self._report()
        return "the budget is spent"

    def choice(self, stopped: str) -> Choice:
        """The best mask of the wanted size, and what there is to say about it."""
        finalists = self._finalists()
        if not finalists:
            raise RequestError(
                f"of {len(self.ledger.entries)} measured masks none that removes {self.n_remove} of {self.n} players "
                "is allowed and finite: give a larger budget"
            )
        best = finalists[0]
        values, stderr = self.belief.fit.values()
        details: dict[str, Any] = {
            "stopped": stopped,
            "loss": finite_or_none(best.loss),
            "expected_gain": finite_or_none(self.expected_gain),
            "measured_in_full": sum(entry.whole for entry in self.ledger.entries.values()),
            "values_stderr": stderr.tolist(),
            "path": self._path(),
            "interactions": _triangle(self.belief.fit.pairs),
            "interactions_stderr": _triangle(self.belief.fit.pairs_stderr()),
            "alternatives": self._alternatives(finalists),
            "forecasts": self._forecasts(),
        }
        if len(finalists) > 1:
            details["runner_up"] = np.flatnonzero(~finalists[1].mask).tolist()
            details["runner_up_loss"] = finite_or_none(finalists[1].loss)
            details["runner_up_better"] = self._chance(best, finalists[1])
        return Choice(best.mask, "coop", values, len(self.ledger.entries), details)

    def _path(self) -> list[dict[str, Any]]:
        """The best measured mask of each size up to the wanted one."""
        path = []
        for size in range(1, self.n_remove + 1):
            for entry in self.ledger.of_size(size)[:1]:
                removed = np.flatnonzero(~entry.mask).tolist()
                path.append({"n_removed": size, "removed": removed, "loss": finite_or_none(entry.loss)})
        return path

    def _alternatives(self, finalists: list[Entry]) -> list[dict[str, Any]]:
        """For each removed player the best mask measured in full that keeps it, where there is one."""
        best, found = finalists[0], []
        for player in np.flatnonzero(~best.mask).tolist():
            for entry in [entry for entry in finalists if entry.mask[player]][:1]:
                removed = np.flatnonzero(~entry.mask).tolist()
                loss = {"loss": finite_or_none(entry.loss), "better": self._chance(best, entry)}
                found.append({"keeps": player, "removed": removed, **loss})
        return found

    def _forecasts(self) -> dict[str, list[Any]]:
        """What the surrogate expected of masks before they were measured, and what they lost: a column each."""
        names = ("n_removed", "expected", "stderr", "measured")
        rows = [(size, *(_short(value) for value in values)) for size, *values in self.belief.forecasts]
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def _chance(self, best: Entry, other: Entry) -> float | None:
        """Share of resampled windows on which the other mask is better; None where there are no windows."""
        domains, objective = self.ledger.domains, self.ledger.objective
        # Without windows an entry has its loss alone.
        if len(best.windows) < 2:
            return None
        return probability_better(best.windows, other.windows, rng=self.rng, domains=domains, objective=objective)

    def _worthwhile(self, incumbents: list[Entry]) -> float:
        """The gain below which masks are not told apart."""
        if len(incumbents) < 2 or len(incumbents[0].windows) < 2:
            return TOLERANCE
        stderr = self.ledger.stderr_between(incumbents[1], incumbents[0])
        return max(TOLERANCE, 0.1 * stderr) if math.isfinite(stderr) else TOLERANCE

    def _candidates(self, incumbents: list[Masks]) -> Masks:
        """Masks of the wanted size that are near what is good, bool [M, n], none of them measured."""
        parents = [entry.mask for entry in self.ledger.of_size(self.n_remove - 1)[:_PARENTS]]
        found = [*swaps(incumbents), *predicted_best(self.belief.fit, self.n_remove, self.rng)]
        found += [*additions(parents)] if self.n_remove > 1 else []
        if not incumbents:
            found += [self._at_random() for _ in range(_AT_RANDOM)]
        return self._new(np.array(found, dtype=np.bool_).reshape(-1, self.n), self.n_remove)

    def _at_random(self) -> Masks:
        mask = np.ones(self.n, dtype=np.bool_)
        mask[self.rng.choice(self.n, self.n_remove, replace=False)] = False
        return mask

    def _new(self, masks: Masks, size: int) -> Masks:
        """Those not measured yet, once each; of the wanted size only what is allowed."""
        fresh = {mask.tobytes(): mask for mask in masks if not self.ledger.knows(mask)}
        if size == self.n_remove:
            fresh = {key: mask for key, mask in fresh.items() if self._is_allowed(mask)}
        return np.array(list(fresh.values()), dtype=np.bool_).reshape(-1, self.n)

    def _finalists(self) -> list[Entry]:
        """Allowed masks of the wanted size that were measured in full and are finite, best first."""
        entries = self.ledger.of_size(self.n_remove)
        return [entry for entry in entries if math.isfinite(entry.loss) and self._is_allowed(entry.mask)]

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
