"""Cutting a set of masks into tasks for workers, so that little of what masks share is lost.

In the plan's order (lexicographic) masks that share a kept prefix are neighbours, so a task is a run of them: a
worker gets whole subtrees of the trie but for the paths at its two ends. What a cut costs is the prefix that its two
neighbours have in common, since both sides compute it. Cuts are therefore moved, within a part of a task's size, to the
place where that prefix is shortest.

Tasks are of decreasing size, so that workers of unlike speed end together: rounds of one task a worker, each round half
of what is left. Many rounds even out more and share less. Among 1 to `_MOST_ROUNDS` the most are taken that end, for
workers all alike, about as early as the best; in five the last tasks are 1/16 of a worker's share each.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layercoop_fast.masked.plan import build_plan, count_evaluations

_MOST_ROUNDS = 5
# More rounds may take so much longer where all workers are alike: they pay where some are slower.
_LONGER = 0.02
# How far a cut may be from its place, as a share of the task it ends.
_SLACK = 0.25


@dataclass(frozen=True, eq=False)
class Task:
    """Masks for one worker.

    Attributes:
        rows: int64 [M], rows of the array that was cut, in the plan's order.
        evaluations: unit evaluations they take: their distinct kept prefixes.
        cost: of the task in unit evaluations, heads included.
    """

    rows: npt.NDArray[np.int64]
    evaluations: int
    cost: float


def cut_masks(masks: npt.NDArray[np.bool_], n_workers: int, *, head_cost: float = 0.0) -> list[Task]:
    """Cut masks (bool [M, U], over units) into tasks for `n_workers`, the first being the largest.

    Every distinct mask is in one task, once; scoring it costs as much as `head_cost` unit evaluations. One worker gets
    one task.
    """
    order = build_plan(masks).unique_rows
    if not len(order):
        return []
    sorted_masks = masks[order]
    kept = sorted_masks.sum(axis=1)
    shared = _shared_with_predecessor(sorted_masks)
    # behind[i]: the cost of the masks before i, where nothing is cut.
    behind = np.concatenate([[0.0], np.cumsum(kept - shared + head_cost)])

    def in_rounds(rounds: int) -> list[Task]:
        tasks = []
        borders = _borders(behind, shared, _sizes(n_workers, rounds))
        for first, last in itertools.pairwise(borders):
            cost = float(behind[last] - behind[first] + shared[first])
            tasks.append(Task(order[first:last], round(cost - head_cost * (last - first)), cost))
        return sorted(tasks, key=lambda task: -task.cost)

    if n_workers == 1:
        return in_rounds(1)
    cuts = [in_rounds(rounds) for rounds in range(1, _MOST_ROUNDS + 1)]
    spans = [max(_ends(tasks, n_workers)) for tasks in cuts]
    allowed = (1 + _LONGER) * min(spans)
    return next(tasks for tasks, span in zip(reversed(cuts), reversed(spans), strict=True) if span <= allowed)


def _shared_with_predecessor(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Units kept in the prefix that each of the sorted distinct masks [M, U] has in common with the one before, [M]."""
    shared = np.zeros(len(masks), dtype=np.int64)
    first_difference = (masks[1:] != masks[:-1]).argmax(axis=1)
    before = np.arange(masks.shape[1]) < first_difference[:, None]
    shared[1:] = (masks[1:] & before).sum(axis=1)
    return shared


def _borders(behind: npt.NDArray[np.float64], shared: npt.NDArray[np.int64], sizes: Sequence[float]) -> list[int]:
    """Where tasks of these sizes (shares of the whole) begin, 0 first, and the number of masks at the end."""
    n_masks, total = len(shared), float(behind[-1])
    borders = [0]
    for size, end in zip(sizes, np.cumsum(sizes)[:-1], strict=False):
        low, high = np.searchsorted(behind, [(end - _SLACK * size) * total, (end + _SLACK * size) * total])
        low = max(int(low), borders[-1] + 1)
        candidates = np.arange(low, min(max(int(high), low + 1), n_masks))
        if len(candidates):
            farness = np.abs(behind[candidates] - end * total)
            borders.append(int(candidates[np.lexsort((farness, shared[candidates]))[0]]))
    return [*borders, n_masks]


def _sizes(n_workers: int, rounds: int) -> list[float]:
    """The share of all work that each task should be: they sum to 1."""
    halves = [0.5**number for number in range(1, rounds)]
    return [size / n_workers for size in [*halves, 0.5 ** (rounds - 1)] for _ in range(n_workers)]


def _ends(tasks: Sequence[Task], n_workers: int) -> list[float]:
    """When each worker has done its last task, if all are alike and take the tasks in turn; a unit evaluation is 1."""
    ends = [0.0] * n_workers
    for task in tasks:
        heapq.heapreplace(ends, ends[0] + task.cost)
    return ends


@dataclass(frozen=True)
class Sharing:
    """What a cut for some number of workers costs.

    Attributes:
        workers, tasks: how many.
        evaluations: unit evaluations of all tasks together.
        over_one: the same over those of one worker.
        busy: mean share of the time for which a worker has work, where all are alike and nothing else takes time.
    """

    workers: int
    tasks: int
    evaluations: int
    over_one: float
    busy: float


def sharing(masks: npt.NDArray[np.bool_], workers: Sequence[int], *, head_cost: float = 0.0) -> list[Sharing]:
    """What cutting masks (bool [M, U]) for each of these numbers of workers costs."""
    alone = count_evaluations(masks).plan
    found = []
    for count in workers:
        tasks = cut_masks(masks, count, head_cost=head_cost)
        evaluations = sum(task.evaluations for task in tasks)
        ends = _ends(tasks, count)
        longest = max(ends)
        busy = sum(ends) / (count * longest) if longest else 1.0
        found.append(Sharing(count, len(tasks), evaluations, evaluations / alone if alone else 1.0, busy))
    return found
