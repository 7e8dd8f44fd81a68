"""How much has to be removed: a number of players, or players of a total cost.

A set of removed players is *wanted* if it saves at least the target, and would not without any one of them. With equal
costs these are all sets of one size; with unequal costs (halves of blocks, for example) the minimal covers of a
knapsack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.base import Allowed, least_valuable

# Sums of costs differ by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Target:
    """What the removed players have to save together.

    Attributes:
        costs: float64 [n], saved by removing each player, at least 0.
        least: to be saved in total, in the same unit.
        must_go: bool [n], players that are never put back, or None.
        n_remove: number of players to remove, where the target is a number; else None.
    """

    costs: Floats
    least: float
    must_go: Masks | None = None
    n_remove: int | None = None

    @classmethod
    def of_count(cls, n_players: int, n_remove: int) -> Target:
        """The removal of any `n_remove` players."""
        return cls(np.ones(n_players), float(n_remove), n_remove=n_remove)

    @property
    def size(self) -> int:
        """Number of players of mean cost that meet the target, from 1 to n − 1."""
        n = len(self.costs)
        mean = float(self.costs.mean())
        return int(np.clip(np.ceil(self.least / mean - _ROUNDING), 1, max(n - 1, 1))) if mean > 0 else 1

    def saved(self, mask: Masks) -> float:
        """Total cost of the players that `mask` (bool [n]) removes."""
        return float(self.costs[~mask].sum())

    def met(self, mask: Masks) -> bool:
        """Whether `mask` (bool [n]) saves enough and keeps a player."""
        if self.n_remove is not None:
            return int(np.count_nonzero(mask)) <= len(mask) - self.n_remove
        return bool(mask.any()) and self.saved(mask) >= self.least * (1 - _ROUNDING)

    def wants(self, mask: Masks) -> bool:
        """Whether `mask` (bool [n]) saves enough, and would not if any one of its removed players were put back."""
        if self.n_remove is not None:
            return int(np.count_nonzero(mask)) == len(mask) - self.n_remove
        return self.met(mask) and not len(self._spare(mask))

    def trimmed(self, mask: Masks, values: Floats) -> Masks:
        """`mask` (bool [n]) with players put back while the target stays met, by descending `values` (float64 [n])."""
        mask = mask.copy()
        while len(spare := self._spare(mask)):
            mask[spare[np.argmax(values[spare])]] = True
        return mask

    def least_valuable(self, scores: Floats, allowed: Allowed | None) -> Masks:
        """The mask (bool [n]) without the players of least score (float64 [n]) that meets the target.

        For unequal costs, players are removed until enough is saved, and those whose removal is not needed are put
        back, the highest score first. Where no number of players suffices, because an expensive player of high score
        has to go, `most_saving` is trimmed instead. `RequestError` where no allowed mask meets the target.
        """
        if self.n_remove is not None:
            return least_valuable(scores, self.n_remove, allowed)
        n = len(scores)
        for size in range(1, n):
            try:
                mask = least_valuable(scores, size, allowed)
            except RequestError:
                continue  # the family may have members of other sizes
            if self.met(mask):
                return self.trimmed_within(mask, scores, allowed)
        return self.trimmed_within(self.most_saving(allowed), scores, allowed)

    def most_saving(self, allowed: Allowed | None) -> Masks:
        """The allowed mask (bool [n]) that keeps the fewest players and saves enough.

        Raises `RequestError` where none saves enough; it states the most that one saves.
        """
        n, most = len(self.costs), 0.0
        for n_kept in range(1, n):
            mask = (
                least_valuable(-self.costs, n - n_kept, None) if allowed is None else allowed.best(-self.costs, n_kept)
            )
            if mask is not None:
                most = max(most, self.saved(mask))
                if self.met(mask):
                    return mask
        share = most / float(self.costs.sum()) if self.costs.any() else 0.0
        raise RequestError(
            f"no allowed mask saves {self.least:.6g} of the players' {self.costs.sum():.6g}: the nearest saves "
            f"{most:.6g}, {share:.1%} of the total"
        )

    def trimmed_within(self, mask: Masks, values: Floats, allowed: Allowed | None) -> Masks:
        """`trimmed`, or `mask` (bool [n]) itself where the trimmed one is not allowed; `values` is float64 [n]."""
        trimmed = self.trimmed(mask, values)
        return trimmed if allowed is None or allowed.check(trimmed) is None else mask

    def leads_on(self, mask: Masks, allowed: Allowed | None) -> bool:
        """Whether an allowed mask meets the target that removes what `mask` (bool [n]) removes, and possibly more."""
        if allowed is None or allowed.check(mask) is None:
            return True
        removed = int((~mask).sum())
        sizes = [self.n_remove] if self.n_remove is not None else range(removed, len(mask))
        for size in sizes:
            best = allowed.best(mask.astype(np.float64), len(mask) - size)
            if best is not None and not best[~mask].any():
                return True
        return False

    def _spare(self, mask: Masks) -> Any:
        """Players whose removal by `mask` (bool [n]) is not needed, intp [·]."""
        free = ~mask if self.must_go is None else ~mask & ~self.must_go
        surplus = self.saved(mask) - self.least * (1 - _ROUNDING)
        return np.flatnonzero(free & (self.costs <= surplus))
