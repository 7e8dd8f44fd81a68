"""The best masks of a size: proven for a pairwise game, found by local search with restarts for any other.

This is not a method of the registry: methods search on a model's own game with a budget of measured masks, while this
is for games that are cheap to evaluate, such as a surrogate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.types import Floats, Game, Masks, Progress, n_players_of, play
from layercoop_fast.search.base import Allowed, check_n_remove, least_valuable
from layercoop_fast.search.branch_and_bound import Pool, branch_and_bound


@dataclass(frozen=True, eq=False)
class BestMasks:
    """The best masks found, best first, and an upper bound for all others.

    Attributes:
        masks: bool [K, n], of the requested size; fewer than requested where no more exist or were found.
        worths: float64 [K], descending.
        bound: no other mask of the size (and of the family) is worth more, up to rounding; infinity where nothing is
            proven.
        n_masks: masks that local search evaluated.
        n_nodes: subproblems that branch and bound examined; 0 where it did not run.
    """

    masks: Masks
    worths: Floats
    bound: float
    n_masks: int
    n_nodes: int

    @property
    def gap(self) -> float:
        """The most by which the true best mask may exceed the best one found: 0 where that is proven to be the best."""
        return max(0.0, self.bound - float(self.worths[0]))

    @property
    def proven(self) -> bool:
        """Whether all of these masks are proven to be the best ones."""
        return self.bound <= float(self.worths[-1])


def best_masks(
    game: Game,
    n_remove: int,
    *,
    n_players: int | None = None,
    top: int = 1,
    seed: int = 0,
    allowed: Allowed | None = None,
    restarts: int = 8,
    budget: int | None = None,
    batch: int = 1 << 10,
    node_limit: int = 20_000,
    time_limit: float = 60.0,
    progress: Progress | None = None,
) -> BestMasks:
    """Find the `top` masks of highest worth among those that remove `n_remove` players and are `allowed`.

    Local search by swaps runs on any game, `restarts` times: a kept and a removed player are exchanged as long as that
    raises the worth. The first start removes the players whose removal alone costs least; the other starts are random.
    Each call evaluates up to `batch` swaps in random order, and the best of them is made if it gains; a climb ends when
    no swap gains. No mask is evaluated twice, and at most `budget` masks are evaluated (no limit where None). Masks of
    NaN worth are never chosen.

    A `PairwiseGame` is then searched by branch and bound, best bound first, within `node_limit` subproblems and
    `time_limit` seconds, which proves the answer or leaves a `gap` (see `search.branch_and_bound`).

    Args:
        game: masks bool [M, n] to worths float64 [M].
        n_remove: players that each mask removes.
        n_players: n, where the game does not state it.
        top: masks to return.
        seed: of the random starts and orders.
        allowed: the family that the masks must belong to.
        restarts: climbs of local search.
        budget: most masks that local search evaluates.
        batch: most masks in one call of the game.
        node_limit: most subproblems of branch and bound.
        time_limit: of branch and bound, in seconds.
        progress: called with ("restarts", done, total) and ("nodes", done, total).

    Raises `RequestError` for sizes out of range, for limits below 1, and where no mask is allowed or no worth is above
    −infinity.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import PairwiseGame, best_masks
        >>> game = PairwiseGame(0.0, np.array([1.0, 2.0, 3.0, 4.0]), np.zeros((4, 4)))
        >>> found = best_masks(game, n_remove=2)
        >>> found.masks.tolist(), found.worths.tolist(), found.proven
        ([[False, False, True, True]], [7.0], True)
    """
    n = n_players_of(game, n_players)
    check_n_remove(n, n_remove)
    for name, value in {"top": top, "restarts": restarts, "batch": batch}.items():
        if value < 1:
            raise RequestError(f"{name} must be at least 1, not {value}")
    if budget is not None and budget < 1:
        raise RequestError(f"the budget must be at least 1 mask, not {budget}")
    pool = Pool(top, allowed)
    climber = _Climber(game, n, n_remove, pool, budget, batch)
    rng = np.random.default_rng(seed)
    for start in range(restarts):
        if climber.left <= 0:
            break
        scores = climber.ranks_alone() if start == 0 and climber.left > n else rng.random(n)
        climber.climb(least_valuable(scores, n_remove, allowed), rng)
        if progress is not None:
            progress("restarts", start + 1, restarts)
    if not pool.masks:
        raise RequestError(f"all {climber.n_asked} worths are NaN or -infinity: nothing to choose by")
    bound, n_nodes = math.inf, 0
    if isinstance(game, PairwiseGame):
        bound, n_nodes = branch_and_bound(game, n_remove, pool, node_limit, time_limit, progress)
    return BestMasks(np.stack(pool.masks), np.array(pool.worths), bound, climber.n_asked, n_nodes)


class _Climber:
    """Local search by swaps; remembers every mask that it evaluated."""

    def __init__(self, game: Game, n: int, n_remove: int, pool: Pool, budget: int | None, batch: int) -> None:
        self._game, self._n, self._n_remove, self._pool, self._batch = game, n, n_remove, pool, batch
        self._known: dict[bytes, float] = {}
        self._budget = math.inf if budget is None else budget

    @property
    def n_asked(self) -> int:
        return len(self._known)

    @property
    def left(self) -> float:
        """Masks that the budget still allows."""
        return self._budget - len(self._known)

    def ask(self, masks: Masks) -> Floats:
        """Return the worths float64 [M] of `masks` (`bool[M, n]`): −infinity for NaN, and beyond the budget."""
        keys = [mask.tobytes() for mask in masks]
        fresh = [row for row, key in enumerate(keys) if key not in self._known]
        fresh = fresh[: int(min(self.left, len(fresh)))]
        worths = play(self._game, masks[fresh])
        of_size = (~masks[fresh]).sum(axis=1) == self._n_remove
        self._pool.offer(masks[fresh][of_size], worths[of_size])
        self._known.update(zip((keys[row] for row in fresh), worths.tolist(), strict=True))
        answers = np.array([self._known.get(key, -math.inf) for key in keys])
        answers[np.isnan(answers)] = -math.inf
        return answers

    def ranks_alone(self) -> Floats:
        """Rank the players by the worth that is left when each is removed alone, highest first: `float64[n]`."""
        ranks = np.empty(self._n)
        ranks[np.argsort(-self.ask(~np.eye(self._n, dtype=np.bool_)), kind="stable")] = np.arange(self._n)
        return ranks

    def climb(self, mask: Masks, rng: np.random.Generator) -> None:
        """Swap players of `mask` (`bool[n]`) as long as that gains; every evaluated mask is offered to the pool."""
        worth = float(self.ask(mask[None])[0])
        gained = True
        while gained and self.left > 0:
            gained = False
            kept, removed = np.flatnonzero(mask), np.flatnonzero(~mask)
            swaps = rng.permutation(len(kept) * len(removed))
            for low in range(0, len(swaps), self._batch):
                out, back = np.divmod(swaps[low : low + self._batch], len(removed))
                masks = np.tile(mask, (len(out), 1))
                rows = np.arange(len(out))
                masks[rows, kept[out]] = False
                masks[rows, removed[back]] = True
                masks = masks[[self._pool.is_allowed(one) for one in masks]]
                worths = self.ask(masks)
                if len(worths) and worths.max() > worth:
                    mask, worth, gained = masks[worths.argmax()], float(worths.max()), True
                    break
