"""Layouts against their definitions, and the cheapest mask against trying every mask."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from layercoop_fast.export.patterns import Rule, cheapest_mask, interval_layouts, periodic_layouts


def test_periodic_layouts_are_every_period_and_offset_once() -> None:
    layouts = periodic_layouts("p", "o", 5)
    wanted = {tuple(i % p == o for i in range(5)) for p in range(1, 12) for o in range(p)}
    assert {tuple(row) for row in layouts.rows.tolist()} == wanted
    assert len(layouts.rows) == len(wanted)
    for (p, o), row in zip(layouts.numbers, layouts.rows, strict=True):
        assert 0 <= o < p
        assert row.tolist() == [i % p == o for i in range(5)]


def test_interval_layouts_are_every_interval_start_and_end_once() -> None:
    layouts = interval_layouts("n", "s", "e", 5)
    numbers = list(product(range(1, 8), range(8), range(8)))
    wanted = {tuple((i + 1) % n == 0 and s <= i <= e for i in range(5)) for n, s, e in numbers}
    assert {tuple(row) for row in layouts.rows.tolist()} == wanted
    assert len(layouts.rows) == len(wanted)
    for (n, s, e), row in zip(layouts.numbers, layouts.rows, strict=True):
        assert row.tolist() == [(i + 1) % n == 0 and s <= i <= e for i in range(5)]


@st.composite
def _problems(draw: st.DrawFn) -> tuple[list[Rule], np.ndarray, np.ndarray, int | None]:
    n = draw(st.integers(1, 8))
    kinds = st.lists(st.booleans(), min_size=n, max_size=n)
    rules = []
    for layouts in draw(st.lists(st.sampled_from(["periodic", "interval"]), max_size=3)):
        made = periodic_layouts("p", "o", n) if layouts == "periodic" else interval_layouts("n", "s", "e", n)
        rules.append(Rule(np.array(draw(kinds)), made))
    costs = st.lists(st.integers(-4, 4), min_size=n, max_size=n)  # small whole numbers: exact sums, and many ties
    keep, drop = np.array(draw(costs), np.float64), np.array(draw(costs), np.float64)
    return rules, keep, drop, draw(st.none() | st.integers(1, n))


@settings(deadline=None, max_examples=150)
@given(_problems())
def test_the_cheapest_mask_is_that_of_trying_all(
    problem: tuple[list[Rule], np.ndarray, np.ndarray, int | None],
) -> None:
    rules, keep, drop, n_kept = problem
    allowed = {}
    for bits in product([False, True], repeat=len(keep)):
        mask, count = np.array(bits), sum(bits)
        expressible = all(rule.numbers_for(np.flatnonzero(mask)) is not None for rule in rules)
        if expressible and count and n_kept in (None, count):
            allowed[bits] = float(np.where(mask, keep, drop).sum())
    found = cheapest_mask(rules, keep, drop, n_kept)
    if not allowed:
        assert found is None
    else:
        assert found is not None
        assert allowed[tuple(found.tolist())] == min(allowed.values())


def test_equal_costs_keep_more_and_then_remove_earlier_layers() -> None:
    assert cheapest_mask([], np.zeros(4), np.zeros(4)).tolist() == [True] * 4
    assert cheapest_mask([], np.zeros(4), np.ones(4), n_kept=2).tolist() == [False, False, True, True]
