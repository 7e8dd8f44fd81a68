"""Constraints of a user: players that must stay, players that must go, and equal pipeline stages.

    family = ConstrainedFamily(ExportablePlayers(config, players), n_players, keep=[0, 1], must_go=[7], stages=4)

The result is a family of masks for any search (`search.base.Allowed`), a subset of another family.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.cheapest import in_order_of_cost
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.search.base import Allowed


class ConstrainedFamily:
    """The masks of a family that meet a user's constraints.

    Args:
        family: the masks to choose from; all where None.
        n_players: players n.
        keep: players that must stay.
        must_go: players that must be removed.
        stages: number of contiguous pipeline stages, as equal as possible, that the n players are split into;
            all must keep the same number of players.

    Attributes:
        keep: bool [n].
        must_go: bool [n].
        stage_of: int64 [n], the pipeline stage of each player.

    Raises `RequestError` where the constraints contradict each other.
    """

    def __init__(
        self,
        family: Allowed | None,
        n_players: int,
        *,
        keep: Sequence[int] = (),
        must_go: Sequence[int] = (),
        stages: int = 1,
    ) -> None:
        self.family, self.n_players, self.stages = family, n_players, stages
        for player in (*keep, *must_go):
            if not 0 <= player < n_players:
                raise RequestError(f"player {player} does not exist: the players are 0 to {n_players - 1}")
        self.keep = np.isin(np.arange(n_players), list(keep))
        self.must_go = np.isin(np.arange(n_players), list(must_go))
        if (both := np.flatnonzero(self.keep & self.must_go)).size:
            raise RequestError(f"{_names(both)} must stay and must go: leave {_it(both)} out of one of the two lists")
        if self.must_go.all():
            raise RequestError(f"all {n_players} players must go: one has to stay")
        if not 1 <= stages <= n_players:
            raise RequestError(f"{n_players} players can be split into 1 to {n_players} stages, not {stages}")
        self.stage_of = np.repeat(
            np.arange(stages), [len(part) for part in np.array_split(np.arange(n_players), stages)]
        )

    def check(self, mask: Masks, /) -> str | None:
        """Return None where `mask` (`bool[n]`) meets the constraints, else one line that says why not."""
        if (gone := np.flatnonzero(self.keep & ~mask)).size:
            return f"{_names(gone)} must stay"
        if (there := np.flatnonzero(self.must_go & mask)).size:
            return f"{_names(there)} must go"
        if len(set(kept := np.bincount(self.stage_of, mask, self.stages).astype(int).tolist())) > 1:
            return f"the {self.stages} stages must keep the same number of players, not {', '.join(map(str, kept))}"
        return None if self.family is None else self.family.check(mask)

    def best(self, costs: Floats, n_kept: int, /) -> Masks | None:
        """Return the member (`bool[n]`) that keeps `n_kept` players at the least total cost removed; None without any.

        `costs` is float64 [n]. With stages, masks that keep equal numbers are tried in order of cost until the inner
        family contains one; the search ends after `masks.cheapest.MOST_LOOKED_AT` masks.
        """
        if not max(1, int(self.keep.sum())) <= n_kept <= self.n_players - int(self.must_go.sum()):
            return None
        # So large that no sum of other costs outweighs it.
        far = 1.0 + 2.0 * float(np.abs(costs).sum())
        forced = np.where(self.keep, far, np.where(self.must_go, -far, costs))
        if self.stages > 1:
            mask = self._best_of_stages(forced, n_kept)
        elif self.family is not None:
            mask = self.family.best(forced, n_kept)
        else:
            mask = np.ones(self.n_players, dtype=np.bool_)
            mask[np.argsort(forced, kind="stable")[: self.n_players - n_kept]] = False
        return mask if mask is not None and self.check(mask) is None else None

    def check_size(self, n_kept: int) -> None:
        """Raise `RequestError` where no member keeps `n_kept` players; it names the nearest numbers that can go."""
        of_family = getattr(self.family, "check_size", None)
        if of_family is not None:
            of_family(n_kept)  # raises where the family itself, without constraints, has no such member
        zeros, n = np.zeros(self.n_players), self.n_players
        if self.best(zeros, n_kept) is not None:
            return
        near = sorted(
            (size for size in range(1, n) if self.best(zeros, size) is not None), key=lambda size: abs(size - n_kept)
        )
        if not near:
            raise RequestError(f"no mask of any size meets the constraints: {self._why(n_kept)}")
        sizes = " or ".join(str(n - size) for size in sorted(near[:2], reverse=True))
        raise RequestError(f"no {n - n_kept} of {n} players can go: {self._why(n_kept)}. {sizes} can")

    def _best_of_stages(self, costs: Floats, n_kept: int) -> Masks | None:
        each, left = divmod(n_kept, self.stages)
        sizes = np.bincount(self.stage_of, minlength=self.stages)
        if left or each > sizes.min():
            return None
        masks = in_order_of_cost(costs, sizes - each, self.stage_of)
        return next((mask for mask in masks if self.check(mask) is None), None)

    def _why(self, n_kept: int) -> str:
        n_remove = self.n_players - n_kept
        if (keep := int(self.keep.sum())) > n_kept:
            return f"{keep} must stay"
        if (must_go := int(self.must_go.sum())) > n_remove:
            return f"{must_go} must go"
        if n_kept % self.stages:
            return f"{self.stages} stages cannot keep {n_kept} in equal parts"
        each = n_kept // self.stages
        needs = np.bincount(self.stage_of, self.keep, self.stages).astype(int)
        most = min(each, int(np.bincount(self.stage_of, ~self.must_go, self.stages).min()))
        if needs.max() > most:
            stage = int(needs.argmax())
            return f"stage {stage} must keep {needs[stage]} players, and every stage keeps {most} at most"
        # A family of exportable masks can explain why, and name the nearest one.
        explain = getattr(self.family, "explain", lambda mask: None)
        if must_go and (reason := explain(~self.must_go)):
            return f"{_names(np.flatnonzero(self.must_go))} must go, but {reason}"
        first = np.arange(self.n_players) < n_kept
        reason = self.check(first) if self.family is None else self.family.check(first)
        return reason or "the players that must stay, those that must go and the stages leave no such mask"


def _names(players: Sequence[int] | np.ndarray) -> str:
    return f"player{'s' if len(players) > 1 else ''} {', '.join(str(int(player)) for player in players)}"


def _it(players: Sequence[int] | np.ndarray) -> str:
    return "them" if len(players) > 1 else "it"
