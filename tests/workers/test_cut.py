"""Cutting masks for workers: nothing lost, nothing doubled, little shared work done twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layercoop_fast.masked.plan import build_plan, count_evaluations
from layercoop_fast.masks.stratified import stratified_masks
from layercoop_fast.workers.cut import cut_masks, sharing


@st.composite
def mask_sets(draw: st.DrawFn) -> np.ndarray:
    n = draw(st.integers(1, 70))
    count = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.random((count, n)) < draw(st.sampled_from([0.0, 0.3, 0.6, 0.95, 1.0]))


@settings(max_examples=60, deadline=None)
@given(mask_sets(), st.integers(1, 9), st.sampled_from([0.0, 0.5, 7.3]))
def test_every_distinct_mask_once_in_runs_of_the_plans_order(masks: np.ndarray, workers: int, head: float) -> None:
    tasks = cut_masks(masks, workers, head_cost=head)
    order = build_plan(masks).unique_rows.tolist()
    by_place = sorted(tasks, key=lambda task: order.index(task.rows[0]))
    assert [row for task in by_place for row in task.rows] == order
    assert all(len(task.rows) for task in tasks)
    for task in tasks:  # what a task is said to take is what its own plan takes
        assert task.evaluations == count_evaluations(masks[task.rows]).plan
        assert task.cost == pytest.approx(task.evaluations + head * len(task.rows))
    assert [task.cost for task in tasks] == sorted((task.cost for task in tasks), reverse=True)


def test_no_masks_make_no_tasks() -> None:
    assert cut_masks(np.empty((0, 5), dtype=np.bool_), 3) == []


def test_one_worker_gets_everything() -> None:
    masks = stratified_masks(12, 200)
    (task,) = cut_masks(masks, 1)
    assert task.evaluations == count_evaluations(masks).plan


@pytest.mark.parametrize(
    ("layers", "workers", "most"), [(32, 8, 1.05), (80, 8, 1.05), (32, 128, 1.25), (80, 128, 1.25)]
)
def test_the_published_masks_keep_their_sharing(layers: int, workers: int, most: float) -> None:
    (found,) = sharing(stratified_masks(layers, 8000), [workers], head_cost=4.0)
    assert 1.0 < found.over_one <= most
    assert found.busy > 0.95


def test_a_cut_goes_where_the_common_prefix_is_short() -> None:
    """Two bushes that share nothing: two workers get one each, although the halves are not equal."""
    first = np.ones((9, 12), dtype=np.bool_)
    first[np.arange(9), np.arange(3, 12)] = False
    second = first[:7].copy()
    second[:, 0] = False
    masks = np.concatenate([first, second])
    tasks = cut_masks(masks, 2)
    assert sum(task.evaluations for task in tasks) == count_evaluations(masks).plan
