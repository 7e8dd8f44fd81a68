"""How much has to go: so many players, or players that cost so much together.

A set of removed players is *wanted* when it saves at least the target and no player of it can be put back: with equal
costs all sets of one size, with unequal ones (halves of blocks, say) the minimal covers of a knapsack.
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
        costs: float64 [n], what removing each player saves, 0 at least.
        least: what is to be saved, in the same unit.
        must_go: bool [n], players that are never put back, or None.
        n_remove: the number of players, where it is a number that is wanted.
    """

    costs: Floats
    least: float
    must_go: Masks | None = None
    n_remove: int | None = None

    @classmethod
    def of_count(cls, n_players: int, n_remove: int) -> Target:
        """`n_remove` players, whichever."""
        return cls(np.ones(n_players), float(n_remove), n_remove=n_remove)

    @property
    def size(self) -> int:
        """How many players of mean cost that takes, from 1 to n − 1."""
        n = len(self.costs)
        mean = float(self.costs.mean())
        return int(np.clip(np.ceil(self.least / mean - _ROUNDING), 1, max(n - 1, 1))) if mean > 0 else 1

    def saved(self, mask: Masks) -> float:
        """What the players that `mask` (bool [n]) removes cost."""
        return float(self.costs[~mask].sum())

    def met(self, mask: Masks) -> bool:
        """Whether `mask` (bool [n]) saves enough and keeps a player."""
        if self.n_remove is not None:
            return int(np.count_nonzero(mask)) <= len(mask) - self.n_remove
        return bool(mask.any()) and self.saved(mask) >= self.least * (1 - _ROUNDING)

    def wants(self, mask: Masks) -> bool:
        """Whether `mask` (bool [n]) saves enough and would not without any one of the players it removes."""
        if self.n_remove is not None:
            return int(np.count_nonzero(mask)) == len(mask) - self.n_remove
        return self.met(mask) and not len(self._spare(mask))

    def trimmed(self, mask: Masks, values: Floats) -> Masks:
        """`mask` (bool [n]) with players put back as long as the target stays met, those of highest value first."""
        mask = mask.copy()
        while len(spare := self._spare(mask)):
            mask[spare[np.argmax(values[spare])]] = True
        return mask

    def least_valuable(self, scores: Floats, allowed: Allowed | None) -> Masks:
        """The players of least score go (bool [n]): of the number wanted, or one more at a time until enough is saved.

        Then those that can stay are put back, the highest score first. Where no such number is enough, since a dear
        player of high score has to go, that is done to the dearest mask. `RequestError` where nothing allowed does.
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
        return self.trimmed_within(self.dearest(allowed), scores, allowed)

    def dearest(self, allowed: Allowed | None) -> Masks:
        """The allowed mask (bool [n]) that keeps the fewest players and saves enough.

        Raises `RequestError` where none does, naming the most that one saves.
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
            f"{most:.6g}, {share:.1%} of it"
        )

    def trimmed_within(self, mask: Masks, values: Floats, allowed: Allowed | None) -> Masks:
        """`trimmed`, or the mask itself where that is not allowed."""
        trimmed = self.trimmed(mask, values)
        return trimmed if allowed is None or allowed.check(trimmed) is None else mask

    def leads_on(self, mask: Masks, allowed: Allowed | None) -> bool:
        """Whether an allowed mask can be had that removes what `mask` (bool [n]) removes, and more if need be."""
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
        """Players that `mask` removes without need, intp [·]."""
        free = ~mask if self.must_go is None else ~mask & ~self.must_go
        surplus = self.saved(mask) - self.least * (1 - _ROUNDING)
        return np.flatnonzero(free & (self.costs <= surplus))
