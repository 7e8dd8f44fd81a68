"""The measured losses of a search, and races that drop bad masks after few windows.

The loss of a mask is by how much its quality is below the full model's, on a scale on which removals nearly add up:
nats per token for a model's own utilities, the logarithm of a positive worth, and a worth itself otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercoop_fast.masks.types import Floats, Masks, play
from layercoop_fast.surrogate.link import Link
from layercoop_fast.texts.domains import Domains, first_windows

# A race first measures these shares of the windows; a game of fewer windows has no races.
_STAGES = (0.2, 0.5)
_LEAST_WINDOWS = 6
# A mask leaves a race when it is worse than the best by this many standard errors of their paired difference.
_BEHIND = 2.0
# Relative variance of a loss on a share of the windows, times that share, where a loss on all windows has 1.
_PARTIAL = 2.0
# Number of masks that the spread of differences between masks is estimated from.
_PEERS = 8
# A larger loss (in nats) means a broken model, whatever its size: beyond this, losses count logarithmically.
_BROKEN = 3.0


@dataclass(frozen=True, eq=False)
class MeasuredMask:
    """A measured mask.

    Attributes:
        mask: bool [n].
        loss: in relation to the full model; NaN and infinite losses are +infinity.
        windows: loss of each window it was measured on, float64 [w], without the weights of several texts; on a game
            without windows its only loss.
        whole: whether it was measured on all windows.
    """

    mask: Masks
    loss: float
    windows: Floats
    whole: bool


class Measurements:
    """The masks measured for a search; each counts once, even if it was measured on some windows only.

    Args:
        game: any game. On a model, masks are measured window by window, and can race.
        n_players: number of players n.
        budget: number of distinct masks that may be measured, the full model not counted.

    Attributes:
        entries: measured masks by the bytes of the mask.
        version: a number that grows with every measurement.
        domains: the texts that the windows belong to, or None.
        objective: "mean", or how the losses of several texts are combined.
    """

    def __init__(self, game: Any, n_players: int, budget: int) -> None:
        self.game = game
        self.n_players = n_players
        self.budget = budget
        self.entries: dict[bytes, MeasuredMask] = {}
        self.version = 0
        self._full = np.ones((1, n_players), dtype=np.bool_)
        self._worths: dict[bytes, float] = {}
        self._staged: Any = None
        self._n_windows = 1
        self._ratios: dict[int, float] = {}
        self._utility: Any = getattr(game, "utility", None)
        self.domains: Domains | None = getattr(getattr(game, "calibration", None), "domains", None)
        self.objective: str = getattr(self._utility, "objective", "mean")
        if getattr(game, "n_windows", 0) and getattr(self._utility, "parts", None) is not None:
            self._n_windows = n_windows = int(game.n_windows)
            # No races where the worst of several texts counts: on few windows another text may be the worst.
            raced = n_windows >= _LEAST_WINDOWS and self.objective == "mean"
            ends = {first_windows(share, n_windows, self.domains) for share in _STAGES} if raced else set()
            self._staged = self.game.staged(sorted({*ends, n_windows}))

    @property
    def left(self) -> int:
        """Number of masks that the budget still allows."""
        return self.budget - len(self.entries)

    def knows(self, mask: Masks) -> bool:
        """Whether a mask, bool [n], was measured, on some windows at least."""
        return mask.tobytes() in self.entries

    def measure(self, masks: Masks, rival: MeasuredMask | None = None, *, race: bool = False) -> list[MeasuredMask]:
        """Measure masks, bool [M, n], as far as the budget allows, and return the measured ones.

        With a rival (measured on all windows), or in a race among themselves, masks that are clearly worse than the
        best after the first windows are not measured further.
        """
        fresh = list({mask.tobytes(): mask for mask in masks if not self.knows(mask)}.values())[: max(self.left, 0)]
        if fresh:
            self._measure(np.stack(fresh), rival, race or rival is not None)
        return [self.entries[mask.tobytes()] for mask in masks if self.knows(mask)]

    def complete(self, masks: Masks) -> list[MeasuredMask]:
        """Measure masks, bool [M, n], on all windows, and return them.

        A mask that was measured on some windows is measured on the others, which takes nothing from the budget.
        """
        due = {mask.tobytes(): mask for mask in masks if not self.knows_whole(mask)}
        begun = [mask for mask in due.values() if self.knows(mask)]
        fresh = [mask for mask in due.values() if not self.knows(mask)][: max(self.left, 0)]
        if begun or fresh:
            self._enter(np.stack([*begun, *fresh]), self._n_windows)
        return [self.entries[mask.tobytes()] for mask in masks if self.knows(mask)]

    def knows_whole(self, mask: Masks) -> bool:
        """Whether a mask, bool [n], was measured on all windows."""
        entry = self.entries.get(mask.tobytes())
        return entry is not None and entry.whole

    def expected(self, entry: MeasuredMask) -> float:
        """The loss on all windows, estimated where the mask was measured on some of them.

        Some windows are easier than others for every mask. So the loss is multiplied by the median, over the masks that
        were measured whole, of their loss on all windows over that on these windows (the ratio estimator).
        """
        return entry.loss if entry.whole else entry.loss * self._ratio(len(entry.windows))

    def whole(self, wanted: Callable[[Masks], bool]) -> list[MeasuredMask]:
        """The masks that were measured whole and for which `wanted` (bool [n] to bool) is true, best first."""
        found = [entry for entry in self.entries.values() if entry.whole and wanted(entry.mask)]
        return sorted(found, key=lambda entry: entry.loss)

    def of_size(self, n_removed: int) -> list[MeasuredMask]:
        """The masks that remove `n_removed` players and were measured whole, best first."""
        return self.whole(lambda mask: int((~mask).sum()) == n_removed)

    def samples(self, trust: float) -> tuple[Masks, Floats, Floats]:
        """Data to fit a surrogate to: removed players bool [M, n], losses float64 [M], relative noise float64 [M].

        The noise grows with losses above `trust`, where an expansion to pairs does not hold.
        """
        entries = list(self.entries.values())
        losses = np.array([self.expected(entry) for entry in entries])
        finite = losses[np.isfinite(losses)]
        # A loss that is not finite counts as the worst finite one.
        losses[~np.isfinite(losses)] = max(float(finite.max()) if len(finite) else 0.0, _BROKEN)
        excess = np.maximum(losses - _BROKEN, 0.0)
        softened = np.minimum(losses, _BROKEN) + np.log1p(excess)
        beyond = np.maximum(softened - trust, 0.0) / max(trust, 1e-9)
        noise = 1 + beyond**2
        noise *= [1 if entry.whole else _PARTIAL * self._n_windows / len(entry.windows) for entry in entries]
        return ~np.stack([entry.mask for entry in entries]), softened, noise

    def _measure(self, masks: Masks, rival: MeasuredMask | None, race: bool) -> None:
        if not race or self._staged is None:
            self._enter(masks, self._n_windows)
            return
        for end in self._staged.ends:
            self._enter(masks, end)
            if end == self._n_windows:
                return
            field = [self.entries[mask.tobytes()] for mask in masks]
            masks = np.array([entry.mask for entry in self._ahead(field, rival)]).reshape(-1, self.n_players)
            if not len(masks):
                return

    def _ahead(self, field: list[MeasuredMask], rival: MeasuredMask | None) -> list[MeasuredMask]:
        """The masks of a field, measured on the same windows, that are not clearly worse than the best or the rival."""
        windows = len(field[0].windows)
        rivals = [*field, *([] if rival is None else [rival])]
        means = [self._loss(entry.windows[:windows]) for entry in rivals]
        best = rivals[int(np.argmin(np.nan_to_num(means, nan=np.inf)))]
        limit = _BEHIND * self._spread(best, field) / math.sqrt(windows)
        # A mask with an infinite loss is behind, even where no better one is known.
        with np.errstate(invalid="ignore"):
            behind = [float(self._difference(entry.windows, best.windows).mean()) for entry in field]
        return [entry for entry, by in zip(field, behind, strict=True) if math.isfinite(entry.loss) and not by > limit]

    def _difference(self, windows: Floats, others: Floats) -> Floats:
        """Difference of two masks' losses on each window, float64 [w], weighted so that its mean is the difference."""
        windows, others = windows[: len(others)], others[: len(windows)]
        difference = windows - others
        return difference if self.domains is None else self.domains.part(0, len(windows)).weighted(difference)

    def stderr_between(self, entry: MeasuredMask, other: MeasuredMask) -> float:
        """Standard error of the difference of two masks' losses, both measured on the same windows, at least 2."""
        return float(self._difference(entry.windows, other.windows).std(ddof=1)) / math.sqrt(len(entry.windows))

    def _spread(self, best: MeasuredMask, field: list[MeasuredMask]) -> float:
        """Typical standard deviation, over windows, of the difference between two masks that are about equally good."""
        known = self.of_size(int((~best.mask).sum()))
        if len(known) < 2:
            known = [best, *sorted((entry for entry in field if entry is not best), key=lambda entry: entry.loss)]
        pairs = [self._difference(entry.windows, known[0].windows) for entry in known[1 : _PEERS + 1]]
        with np.errstate(invalid="ignore"):
            spreads = [float(pair.std(ddof=1)) for pair in pairs if len(pair) > 1]
        finite = [spread for spread in spreads if np.isfinite(spread)]
        return float(np.median(finite)) if finite else float("inf")

    def _ratio(self, n_windows: int) -> float:
        """Median ratio of the loss on all windows to that on the first `n_windows`, over masks measured whole."""
        if n_windows not in self._ratios:
            known = [entry for entry in self.whole(lambda mask: True) if 0 < entry.loss < _BROKEN]
            ratios = [entry.loss / self._loss(entry.windows[:n_windows]) for entry in known]
            likely = [ratio for ratio in ratios if 0.2 < ratio < 5.0]  # ratios of tiny losses say nothing
            self._ratios[n_windows] = float(np.median(likely)) if likely else 1.0
        return self._ratios[n_windows]

    def _enter(self, masks: Masks, end: int) -> None:
        if self._staged is None:
            self._enter_plain(masks)
            return
        with np.errstate(all="ignore"):
            scores, full = (self._staged.window_scores(some, end) for some in (masks, self._full))
            windows = self._utility.window_losses(scores.nll, scores.kl, full.nll, full.kl)
        for mask, row in zip(masks, windows, strict=True):
            self._put(mask, row, end == self._n_windows)
        self._ratios.clear()

    def _enter_plain(self, masks: Masks) -> None:
        """Enter masks of a game without windows. A first negative worth changes the scale, so all are entered again."""
        fresh = masks if self._worths else np.concatenate([self._full, masks])
        self._worths |= {
            mask.tobytes(): float(worth) for mask, worth in zip(fresh, play(self.game, fresh), strict=True)
        }
        worths = np.array(list(self._worths.values()))
        known = np.isfinite(worths)
        scaled = np.full(len(worths), -np.inf)
        if known.any():
            scaled[known] = Link.of(worths[known]).forward(worths[known])
        zero = scaled[0] if known[0] else scaled[known].max(initial=0.0)
        for key, value in zip(self._worths, scaled, strict=True):
            mask = np.frombuffer(key, dtype=np.bool_)
            if not mask.all():
                self._put(mask, np.array([zero - value]), True)

    def _put(self, mask: Masks, windows: Floats, whole: bool) -> None:
        loss = self._loss(windows)
        self.version += 1
        self.entries[mask.tobytes()] = MeasuredMask(mask, loss if np.isfinite(loss) else np.inf, windows, whole)

    def _loss(self, windows: Floats) -> float:
        """The loss over the first w windows, from their losses float64 [w]."""
        if self._staged is None or self.domains is None:
            return float(windows.mean())
        return float(self.domains.part(0, len(windows)).loss(windows, self.objective))
