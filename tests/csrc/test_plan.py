from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_oracle import Run, count, distinct_masks, kept, prefixes, simulate, states_without_recompute

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.masked.plan import Plan, build_plan, count_evaluations, last_states

Masks = npt.NDArray[np.bool_]

PLAYERS = [1, 2, 7, 31, 32, 33, 63, 64, 65, 128, 512]
BUDGETS = [1, 2, 3, 5, 8, None]


def from_ints(values: list[int], n_players: int) -> Masks:
    masks = np.zeros((len(values), n_players), dtype=bool)
    for row, value in enumerate(values):
        for player in range(n_players):
            masks[row, player] = value >> player & 1
    return masks


@st.composite
def mask_sets(draw: st.DrawFn, max_masks: int = 24) -> Masks:
    """Masks that share long prefixes, masks that share none, duplicates, and the two extremes."""
    n_players = draw(st.sampled_from(PLAYERS))
    full = (1 << n_players) - 1
    anything = st.integers(0, full)
    bases = draw(st.lists(anything, min_size=1, max_size=3))
    flips = st.sets(st.integers(0, n_players - 1), max_size=3)
    near = st.builds(lambda base, flip: base ^ sum(1 << i for i in flip), st.sampled_from(bases), flips)
    values = draw(st.lists(st.one_of(near, anything, st.sampled_from([0, full])), max_size=max_masks))
    return from_ints(values, n_players)


def check(masks: Masks, max_states: int | None) -> tuple[Plan, Run]:
    """Builds a plan and asserts all that holds for any masks and any budget."""
    plan = build_plan(masks, max_states)
    assert plan.evaluations == count(masks)
    assert [tuple(mask) for mask in masks[plan.unique_rows].tolist()] == distinct_masks(masks)
    np.testing.assert_array_equal(masks[plan.unique_rows][plan.inverse], masks)

    run = simulate(plan, masks)
    assert plan.scheduled == run.computed.total()
    assert set(run.computed) == set().union(*(prefixes(kept(mask)) for mask in masks))
    assert run.most_live <= plan.peak_states <= plan.max_states
    assert sorted(set(plan.op_dst.tolist())) == list(range(plan.peak_states))
    alone = sum(len(kept(mask)) for mask in masks[plan.unique_rows])
    assert plan.plan <= plan.scheduled <= alone
    if plan.max_states >= plan.states_without_recompute:
        assert plan.scheduled == plan.plan
    return plan, run


@pytest.mark.parametrize("max_states", BUDGETS)
@settings(max_examples=60, deadline=None)
@given(masks=mask_sets())
def test_schedule_keeps_its_promises(masks: Masks, max_states: int | None) -> None:
    check(masks, max_states)


@settings(max_examples=60, deadline=None)
@given(masks=mask_sets())
def test_enough_states_compute_every_prefix_once(masks: Masks) -> None:
    enough = states_without_recompute(masks)
    plan, run = check(masks, max(enough, 1))
    assert plan.states_without_recompute == enough
    assert set(run.computed.values()) <= {1}


def test_every_set_of_masks_of_three_players() -> None:
    everything = np.array(list(itertools.product([False, True], repeat=3)))
    for chosen in itertools.product([False, True], repeat=8):
        for max_states in (1, 2, 3, None):
            check(everything[np.array(chosen)], max_states)


@pytest.mark.parametrize("max_states", [1, 4, 16, 300])
def test_many_masks(max_states: int) -> None:
    rng = np.random.default_rng(0)
    check(rng.random((600, 24)) < 0.8, max_states)


def test_without_a_budget_every_player_runs_once() -> None:
    masks = np.random.default_rng(1).random((200, 40)) < 0.7
    plan, _ = check(masks, None)
    assert plan.step_player.tolist() == list(range(-1, 40))


def test_a_larger_budget_makes_fewer_wider_steps_and_recomputes_no_more() -> None:
    masks = np.random.default_rng(2).random((500, 32)) < 0.75
    plans = [build_plan(masks, budget) for budget in (1, 2, 4, 8, 16, 64, 256, None)]
    steps = [plan.n_steps for plan in plans]
    evaluations = [plan.scheduled for plan in plans]
    assert steps == sorted(steps, reverse=True)
    assert evaluations == sorted(evaluations, reverse=True)
    assert evaluations[0] > evaluations[-1]


def test_the_shallowest_states_are_given_up() -> None:
    # The masks keep 0 2 4, 0 2 4 5, 0 2 3 and 0 1: each leaves the path of the first from a shallower state. That path
    # parks (0, 2, 4), (0, 2) and (0,); a budget of 3 has room for two of them beside the mask at work.
    masks = from_ints([0b010101, 0b110101, 0b001101, 0b000011], 6)
    plan, run = check(masks, 3)
    assert plan.states_without_recompute == 4
    assert [state for state, times in run.computed.items() if times > 1] == [(0,)]
    assert run.computed[(0,)] == 2


@pytest.mark.parametrize("n_players", PLAYERS)
def test_extremes(n_players: int) -> None:
    nothing, everything = np.zeros((3, n_players), dtype=bool), np.ones((2, n_players), dtype=bool)
    for max_states in BUDGETS:
        plan, _ = check(nothing, max_states)
        assert (plan.scheduled, plan.step_player.tolist()) == (0, [-1])
        plan, _ = check(everything, max_states)
        assert (plan.scheduled, plan.peak_states) == (n_players, 1)
        check(np.concatenate([nothing, everything]), max_states)


@pytest.mark.parametrize("n_players", PLAYERS)
def test_no_masks_make_an_empty_plan(n_players: int) -> None:
    masks = np.empty((0, n_players), dtype=bool)
    plan, _ = check(masks, None)
    assert list(plan.steps()) == []
    assert (plan.n_steps, plan.peak_states, plan.states_without_recompute) == (0, 0, 0)
    assert (plan.op_offsets.tolist(), plan.emit_offsets.tolist()) == ([0], [0])


@settings(max_examples=60, deadline=None)
@given(masks=mask_sets())
def test_counts_without_a_schedule(masks: Masks) -> None:
    assert count_evaluations(masks) == count(masks)


@pytest.mark.parametrize("n_players", [8, 64, 130])
def test_distinct_masks_are_numpys(n_players: int) -> None:
    masks = np.random.default_rng(n_players).random((20_000, n_players)) < 0.9
    expected, first_rows, inverse = np.unique(masks, axis=0, return_index=True, return_inverse=True)
    plan = build_plan(masks, 4)
    np.testing.assert_array_equal(masks[plan.unique_rows], expected)
    np.testing.assert_array_equal(plan.unique_rows, first_rows)
    np.testing.assert_array_equal(plan.inverse, inverse.reshape(-1))


def test_order_and_duplicates_of_the_input_change_nothing() -> None:
    masks = np.random.default_rng(3).random((100, 20)) < 0.5
    shuffled = np.concatenate([masks, masks])[np.random.default_rng(4).permutation(200)]
    one, other = build_plan(masks, 8), build_plan(shuffled, 8)
    for name in ("step_player", "op_offsets", "op_src", "op_dst", "emit_offsets", "emit_mask", "emit_slot"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_any_memory_layout_of_masks() -> None:
    masks = np.random.default_rng(5).random((50, 20)) < 0.5
    plan = build_plan(masks)
    for same in (np.asfortranarray(masks), np.repeat(masks, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(build_plan(same).op_src, plan.op_src)


def test_arrays_are_read_only_and_outlive_the_plan() -> None:
    masks = np.random.default_rng(6).random((50, 20)) < 0.5
    core = _C.Plan(_C.pack_masks(masks), 20, 8)
    src = core.op_src
    with pytest.raises(ValueError, match="read-only"):
        src[0] = 0
    before = src.copy()
    del core
    np.testing.assert_array_equal(src, before)


def test_planning_lets_other_python_threads_run() -> None:
    packed = np.random.default_rng(7).integers(0, 2**63, size=(400_000, 1), dtype=np.uint64)
    worker = threading.Thread(target=lambda: _C.Plan(packed, 64, 400_000))
    worker.start()
    turns = 0
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[True]], "expected a numpy array bool.* got list"),
        (np.ones((2, 3), dtype=np.uint8), "expected dtype bool .* got uint8"),
        (np.array([[True, None]], dtype=object), "expected dtype bool .* got object"),
        (np.ones(3, dtype=bool), "expected 2 dimensions .* got 1"),
        (np.ones((2, 0), dtype=bool), "expected 1 to 512 players .* got 0"),
        (np.ones((2, 513), dtype=bool), "expected 1 to 512 players .* got 513"),
    ],
)
def test_bad_masks(masks: Masks, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_plan(masks)
    with pytest.raises(RequestError, match=message):
        count_evaluations(masks)


@pytest.mark.parametrize("max_states", [0, -3])
def test_no_room_for_a_state(max_states: int) -> None:
    masks = np.ones((2, 3), dtype=bool)
    with pytest.raises(RequestError, match=f"max_states: {max_states} is too few"):
        build_plan(masks, max_states)
    with pytest.raises(ValueError, match=f"max_states: {max_states} is too few"):
        _C.Plan(_C.pack_masks(masks), 3, max_states)


@settings(max_examples=60, deadline=None)
@given(mask_sets(), st.sampled_from(BUDGETS))
def test_last_states_are_those_that_nothing_reads_afterwards(masks: Masks, max_states: int | None) -> None:
    """Against following every slot through the rest of the schedule."""
    plan = build_plan(masks, max_states)
    steps = list(plan.steps())
    expected = []
    for now, step in enumerate(steps):
        for slot in step.emit_slot.tolist():
            last = True
            for later in steps[now + 1 :]:
                if slot in later.src.tolist():
                    last = False
                    break
                if slot in later.dst.tolist():
                    break
            expected.append(last)
    assert last_states(plan).tolist() == expected
