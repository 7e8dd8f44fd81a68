"""Branch and bound for the best masks of a pairwise game, which `search.best_masks` proves its answers by.

With x the chosen players (the removed ones, or the kept ones where those are fewer), r of them, and any split
w_ij = p_ij + p_ji of the pair weights,

    Σ a_i x_i + Σ_{i<j} w_ij x_i x_j ≤ max over |x| = r of Σ_i x_i (a_i + the r − 1 largest p_ij over j ≠ i),

and subgradient steps choose the split. Players that are in, or out of, every better mask by the bound are fixed.
Source: the Gilmore–Lawler bound in the form of Caprara, Pisinger and Toth, 1999 (quadratic knapsack).
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from itertools import combinations, count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.search.base import Allowed

Players: TypeAlias = npt.NDArray[np.intp]

# Subgradient steps that tighten a bound: at the root, and at each other node.
_ROOT_STEPS, _NODE_STEPS = 200, 8
# A subproblem with at most this many masks is enumerated.
_LISTED = 1000
# Most that rounding may add to a bound, relative to the sum of the game's absolute weights.
_ROUNDING = 1e-13


class Pool:
    """The best allowed masks so far, each once, best first."""

    def __init__(self, top: int, allowed: Allowed | None) -> None:
        self.masks: list[Masks] = []
        self.worths: list[float] = []
        self._top = top
        self._allowed = allowed
        self._held: set[bytes] = set()

    @property
    def threshold(self) -> float:
        """A mask enters the pool if it is worth more than this."""
        return self.worths[-1] if len(self.masks) == self._top else -math.inf

    def is_allowed(self, mask: Masks) -> bool:
        """Return whether `mask` (`bool[n]`) belongs to the family."""
        return self._allowed is None or self._allowed.check(mask) is None

    def offer(self, masks: Masks, worths: Floats) -> None:
        """Add those of `masks` (`bool[M, n]`, of the size) that are allowed and worth enough; `worths` float64 [M]."""
        for row in np.argsort(-worths, kind="stable"):
            worth = float(worths[row])
            if not worth > self.threshold:  # also ends at NaN, which sorts last
                return
            key = masks[row].tobytes()
            if key in self._held or not self.is_allowed(masks[row]):
                continue
            place = int(np.searchsorted(-np.array(self.worths), -worth, side="right"))
            self.masks.insert(place, masks[row].copy())
            self.worths.insert(place, worth)
            self._held.add(key)
            if len(self.masks) > self._top:
                self._held.remove(self.masks.pop().tobytes())
                self.worths.pop()


@dataclass(frozen=True, eq=False)
class _Node:
    """A subproblem: some players are chosen and some ruled out.

    Attributes:
        chosen: intp [·], players that are chosen.
        free: intp [f], players that are not decided yet.
        take: number of free players to choose.
        value: of the chosen players alone.
        gain: float64 [f], the value that each free player adds to the chosen ones.
        split: float64 [f, f], p_ij; p + pᵀ is the coupling of the free players, the diagonal is −infinity.
    """

    chosen: Players
    free: Players
    take: int
    value: float
    gain: Floats
    split: Floats

    def decide(self, coupling: Floats, chosen: Masks, ruled_out: Masks) -> _Node:
        """Return the node with these of the free players (`bool[f]`, disjoint) decided."""
        rest = ~(chosen | ruled_out)
        among = coupling[np.ix_(self.free, self.free)]
        inside = among[np.ix_(chosen, chosen)].sum() / 2
        return _Node(
            np.concatenate([self.chosen, self.free[chosen]]),
            self.free[rest],
            self.take - int(chosen.sum()),
            self.value + float(self.gain[chosen].sum() + inside),
            self.gain[rest] + among[np.ix_(rest, chosen)].sum(axis=1),
            self.split[np.ix_(rest, rest)],
        )


@dataclass(frozen=True, eq=False)
class _Relaxed:
    """The bound of a node under its split, and the choice that attains it.

    Attributes:
        bound: the sum of the `take` largest totals, and the node's value.
        totals: float64 [f], a_i + the take − 1 largest p_ij.
        chosen: bool [f], the players of the `take` largest totals.
        partners: bool [f, f], the j whose p_ij the total of each chosen i counts; other rows are empty.
    """

    bound: float
    totals: Floats
    chosen: Masks
    partners: Masks

    @property
    def disagreement(self) -> Floats:
        """Antisymmetric `float64[f, f]`: 1 where i counts j and j does not count i; a subgradient of the bound in p."""
        counted = self.partners.astype(np.float64)
        slope: Floats = counted - counted.T
        return slope


def _relax(node: _Node) -> _Relaxed:
    f, partners = len(node.free), node.take - 1
    picked = np.zeros((f, f), dtype=np.bool_)
    totals = node.gain
    if partners > 0:
        largest = np.argpartition(node.split, f - partners, axis=1)[:, f - partners :]
        totals = totals + np.take_along_axis(node.split, largest, axis=1).sum(axis=1)
        np.put_along_axis(picked, largest, True, axis=1)
    chosen = np.zeros(f, dtype=np.bool_)
    chosen[np.argpartition(totals, f - node.take)[f - node.take :]] = True
    return _Relaxed(node.value + float(totals[chosen].sum()), totals, chosen, picked & chosen[:, None])


def _tighten(node: _Node, threshold: float, steps: int) -> tuple[_Node, _Relaxed]:
    """Lower the bound by Polyak steps of the subgradient method towards `threshold`; return the best node and bound."""
    best_node, best = node, _relax(node)
    relaxed, rate, idle = best, 1.0, 0
    for _ in range(steps):
        slope = relaxed.disagreement
        steepness = float((slope**2).sum()) / 2
        if best.bound <= threshold or steepness == 0:
            break
        goal = threshold if threshold > -math.inf else best.bound - abs(best.bound)
        step = rate * (relaxed.bound - goal) / steepness
        node = _Node(node.chosen, node.free, node.take, node.value, node.gain, node.split - step * slope)
        relaxed = _relax(node)
        idle += 1
        if relaxed.bound < best.bound:
            best_node, best, idle = node, relaxed, 0
        elif idle >= 5:
            node, relaxed, rate, idle = best_node, best, rate / 2, 0
    return best_node, best


def branch_and_bound(
    game: PairwiseGame, n_remove: int, pool: Pool, node_limit: int, time_limit: float, progress: Progress | None
) -> tuple[float, int]:
    """Improve `pool` until no other mask can enter or a limit is reached; return the bound and the number of nodes."""
    n = game.n_players
    coupling = game.coupling
    choose_removed = 2 * n_remove <= n
    if choose_removed:
        take, value, gain = n_remove, float(game(np.ones((1, n), np.bool_))[0]), -(game.linear + coupling.sum(axis=1))
    else:
        take, value, gain = n - n_remove, game.bias, game.linear
    split = coupling / 2
    np.fill_diagonal(split, -np.inf)
    root = _Node(np.empty(0, np.intp), np.arange(n), take, value, gain, split)
    rounding = _ROUNDING * (abs(game.bias) + np.abs(game.linear).sum() + np.abs(game.pairs).sum())

    n_nodes = 0
    ticket = count()
    queue: list[tuple[float, int, _Node, _Relaxed]] = []

    def offer(chosen: Masks) -> None:
        masks = ~chosen if choose_removed else chosen
        pool.offer(masks, game(masks))

    def open_node(node: _Node, steps: int) -> None:
        """Bound a node, fix the players that can be fixed, and queue it unless it holds no better mask."""
        nonlocal n_nodes
        n_nodes += 1
        while True:
            if math.comb(len(node.free), node.take) <= _LISTED:
                offer(_listed(node, n))
                return
            node, relaxed = _tighten(node, pool.threshold + rounding, steps)
            offer(_with_chosen(node, relaxed.chosen[None], n))
            spare = relaxed.bound - pool.threshold - rounding
            if spare <= 0:
                return
            last_in, first_out = relaxed.totals[relaxed.chosen].min(), relaxed.totals[~relaxed.chosen].max()
            fixed_in = relaxed.chosen & (relaxed.totals - first_out >= spare)
            fixed_out = ~relaxed.chosen & (last_in - relaxed.totals >= spare)
            if not (fixed_in.any() or fixed_out.any()):
                heapq.heappush(queue, (-relaxed.bound, next(ticket), node, relaxed))
                return
            node, steps = node.decide(coupling, fixed_in, fixed_out), _NODE_STEPS

    open_node(root, _ROOT_STEPS)
    until = time.monotonic() + time_limit
    while queue and -queue[0][0] > pool.threshold + rounding and n_nodes < node_limit and time.monotonic() < until:
        _, _, node, relaxed = heapq.heappop(queue)
        # Branch on the player that most others disagree with; where there is none, on a chosen one.
        doubt = np.abs(relaxed.disagreement).sum(axis=1) + relaxed.chosen / 2
        player = np.arange(len(node.free)) == doubt.argmax()
        nobody = np.zeros_like(player)
        open_node(node.decide(coupling, player, nobody), _NODE_STEPS)
        open_node(node.decide(coupling, nobody, player), _NODE_STEPS)
        if progress is not None:
            progress("nodes", min(n_nodes, node_limit), node_limit)
    still_open = -queue[0][0] if queue else -math.inf
    return (still_open if still_open > pool.threshold + rounding else pool.worths[-1]), n_nodes


def _with_chosen(node: _Node, picks: Masks, n: int) -> Masks:
    """Return the chosen players of the node with each row of `picks` (`bool[M, f]`) as `bool[M, n]`."""
    chosen = np.zeros((len(picks), n), dtype=np.bool_)
    chosen[:, node.chosen] = True
    chosen[:, node.free] = picks
    return chosen


def _listed(node: _Node, n: int) -> Masks:
    """Return every choice that the node leaves, `bool[C(f, take), n]`."""
    shape = math.comb(len(node.free), node.take), node.take
    picked = np.array(list(combinations(range(len(node.free)), node.take)), dtype=np.intp).reshape(shape)
    picks = np.zeros((len(picked), len(node.free)), dtype=np.bool_)
    np.put_along_axis(picks, picked, True, axis=1)
    return _with_chosen(node, picks, n)
