"""The batch width is measured, kept for the process, and never a change of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES
from torch import Tensor

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.kernels.rows import MIN_ROWS
from layercoop_fast.masked import batch_width as width
from layercoop_fast.masked.forward import run_plan
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.units import Units
from layercoop_fast.masked.windows import Windows


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(width, "_measured", {})
    monkeypatch.setattr(width, "rows_alike_from", lambda dtype, *_: MIN_ROWS)  # these states are small
    return None


def windows_of(dtype: torch.dtype = torch.float32) -> Windows:
    ids = torch.randint(3, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    return Windows(Skeleton(FAMILIES["llama"](n_layers=6).to(dtype)), ids)


class Counting:
    """Units that remember how many states each call was for."""

    path = "counting"

    def __init__(self, units: Units) -> None:
        self.units = units
        self.products = units.products
        self.widths: list[int] = []

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor | None = None) -> None:
        self.widths.append(len(sources))
        self.units.run(unit, sources, targets, rows)


@given(st.integers(0, 200), st.sampled_from([1, 2, 4, 8, 32]))
def test_cuts_cover_everything_in_powers_of_two(count: int, widest: int) -> None:
    cuts = list(width.batches(count, widest))
    assert [index for part in cuts for index in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in cuts]
    assert all(size <= widest and size & (size - 1) == 0 for size in sizes)
    assert sizes == sorted(sizes, reverse=True)


def test_the_narrowest_that_is_as_good_as_the_fastest() -> None:
    assert width.fastest({1: 3.0, 2: 2.02, 4: 2.0, 8: 2.5}) == 2
    assert width.fastest({1: 3.0, 2: 2.2, 4: 2.0, 8: 1.9}) == 8
    assert width.fastest({1: 1.0}) == 1


@pytest.mark.parametrize(("n", "power"), [(-1, 1), (0, 1), (1, 1), (2, 2), (3, 2), (8, 8), (1023, 512)])
def test_power_of_two_up_to(n: int, power: int) -> None:
    assert width.power_of_two_up_to(n) == power


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_plan_is_swept_once_and_every_width_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    masks = np.random.default_rng(0).random((30, 6)) < 0.6

    def played(rows: int, sweep_from: int) -> tuple[dict[int, Tensor], list[int]]:
        monkeypatch.setattr(width, "SWEEP_FROM", sweep_from)
        monkeypatch.setattr(width, "ROWS_PER_CALL", rows)
        windows = windows_of(dtype)
        units = Counting(make_units(windows))
        found: dict[int, Tensor] = {}
        run_plan(windows, build_plan(masks), lambda mask, state: found.update({mask: state.clone()}), units=units)
        return found, units.widths

    alone, widths = played(1, 10**9)
    assert set(widths) == {1}
    in_fours, widths = played(4 * 60, 10**9)
    assert max(widths) == 4
    swept, widths = played(1, 1)
    # The state alone, then three times each width; the pool of this plan has room for no wider one.
    assert widths[:4] == [1, 1, 1, 1]
    assert widths[4:7] == [2, 2, 2]
    assert len(width._measured) == 1
    chosen = next(iter(width._measured.values()))
    again, widths = played(1, 1)
    assert widths[:3] != [1, 1, 1] or chosen == 1, "swept again"
    for other in (in_fours, swept, again):
        assert all(torch.equal(other[mask], alone[mask]) for mask in alone)


def test_a_width_that_changes_a_number_is_not_used() -> None:
    windows = windows_of()

    class Leaky(Counting):
        def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
            super().run(unit, sources, targets)
            if len(sources) == 4:
                targets[3].add_(1e-3)

    with torch.inference_mode():
        found = width.sweep(windows, Leaky(make_units(windows)), list(windows.pool(8)), 8)
    assert sorted(found) == [1, 2]  # and none wider: a batch of 8 would end in one of 4


def test_states_of_few_rows_go_one_by_one_where_that_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of a few hundred rows round otherwise than those of more: only whole states alone are always alike."""
    monkeypatch.setattr(width, "rows_alike_from", lambda dtype, *_: 1024 if dtype == torch.bfloat16 else MIN_ROWS)
    for dtype, widest in ((torch.bfloat16, 1), (torch.float32, 8)):
        windows = windows_of(dtype)
        units, slots = make_units(windows), list(windows.pool(8))
        with torch.inference_mode():
            assert width.batch_width(windows, units, slots, 10) == widest
            assert width.batch_width(windows, units, slots, 10**6) <= widest
            assert width.scored_width(windows, units, slots, 8) == (0 if widest == 1 else 8)


class Rounding(Counting):
    """Units like those whose products round otherwise where there are few rows: batches of some positions show it."""

    def __init__(self, units: Units, at: int) -> None:
        super().__init__(units)
        self.at = at
        self.some: list[int] = []

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor | None = None) -> None:
        super().run(unit, sources, targets, rows)
        if rows is not None:
            self.some.append(len(sources))
            if len(sources) == self.at:
                targets[-1][0, rows[-1]] += 1e-3


@pytest.mark.parametrize(("at", "widest"), [(1, 0), (2, 1), (4, 2), (8, 4)])
def test_positions_are_computed_alone_only_where_that_changes_no_number(at: int, widest: int) -> None:
    windows = windows_of()
    windows.score_every = 4
    masks = np.random.default_rng(1).random((30, 6)) < 0.6

    def played(units: Units) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        run_plan(
            windows,
            build_plan(masks),
            lambda mask, state: found.update({mask: state[:, windows.scored].clone()}),
            units=units,
            max_rows=4 * 60,
        )
        return found

    expected = played(Counting(make_units(windows)))
    units = Rounding(make_units(windows), at)
    windows.faithful_widths.clear()
    found = played(units)
    assert all(torch.equal(found[mask], expected[mask]) for mask in expected)
    tried = [1, 2, 4][: [1, 2, 4, 8].index(at) + 1]  # at widths 1, 2, 4, up to the one that shows
    assert units.some[: len(tried)] == tried
    assert max(units.some[len(tried) :], default=0) == widest
