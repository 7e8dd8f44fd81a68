from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from layercoop_fast.runtime.draft_length import MOST, DraftLength, speed_up, tokens_a_round


class Machine:
    """Writes with a `DraftLength` on a clock of its own, given the times of a step, a draft and a verified row.

    `slowness` says how many times as long everything takes at a time.
    """

    def __init__(
        self,
        acceptance: float,
        draft: float,
        row: float = 0.05,
        step: float = 1.0,
        seed: int = 0,
        slowness: Callable[[float], float] = lambda _: 1.0,
    ) -> None:
        self.acceptance, self.draft, self.row, self.step = acceptance, draft, row, step
        self.slowness = slowness
        self.random = np.random.default_rng(seed)
        self.clock = 0.0
        self.lengths: list[int] = []

    def write(self, lengths: DraftLength, tokens: int) -> float:
        """The seconds that so many tokens take."""
        began, written = self.clock, 0
        while written < tokens:
            drafted = lengths.length(tokens - written)
            self.lengths.append(drafted)
            if not drafted:
                lengths.record_step(self._take(self.step))
                written += 1
                continue
            accepted = 0
            while accepted < drafted and self.random.random() < self.acceptance:
                accepted += 1
            drafting = sum(self._take(self.draft) for _ in range(drafted))
            lengths.record_round(drafted, [accepted], drafting, self._take(self.step * (1 + self.row * drafted)))
            written += accepted + 1
        return self.clock - began

    def _take(self, seconds: float) -> float:
        seconds *= self.slowness(self.clock)
        self.clock += seconds
        return seconds


def best_speed_up(machine: Machine) -> float:
    return max(
        speed_up(machine.acceptance, k, machine.draft, 1 + machine.row * k, machine.step) for k in range(1, MOST + 1)
    )


def test_a_round_yields_the_drafts_accepted_in_a_row_and_one() -> None:
    random = np.random.default_rng(0)
    yields = (random.random((20000, 4)) < 0.6).cumprod(axis=1).sum(axis=1) + 1
    assert tokens_a_round(0.6, 4) == pytest.approx(yields.mean(), abs=0.03)
    assert (tokens_a_round(1.0, 3), tokens_a_round(0.0, 3)) == (4, 1)


@pytest.mark.parametrize(("acceptance", "draft"), [(0.95, 0.3), (0.9, 0.5), (0.8, 0.35)])
def test_where_it_pays_the_best_length_is_found(acceptance: float, draft: float) -> None:
    machine, lengths = Machine(acceptance, draft), DraftLength(share=0.5)
    seconds = machine.write(lengths, 1500)
    assert 1500 / seconds > 0.93 * best_speed_up(machine)
    accepted = lengths.accepted / lengths.judged
    assert accepted == pytest.approx(acceptance, abs=0.03)
    # What it predicts from acceptance and times is what the clock says, before every round and of all of them.
    predicted = max(lengths.predict(k, accepted) for k in range(1, MOST + 1))
    assert predicted == pytest.approx(1500 / seconds, rel=0.07)
    assert lengths.expected_tokens / lengths.expected_seconds == pytest.approx(1500 / seconds, rel=0.05)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("acceptance", "draft"), [(0.0, 0.6), (0.3, 0.6), (0.5, 0.9), (0.2, 1.5)])
def test_where_it_does_not_pay_trying_costs_next_to_nothing(acceptance: float, draft: float, share: float) -> None:
    for seed in range(5):
        machine, lengths = Machine(acceptance, draft, seed=seed), DraftLength(share)
        assert machine.write(lengths, 256) <= 256 * 1.03
        assert machine.lengths.count(0) > 230


@pytest.mark.parametrize("changes_at", [3.5, 8, 20])
@pytest.mark.parametrize(("before", "after"), [(2.0, 1.0), (1.0, 2.0)])
def test_a_machine_that_changes_its_speed_does_not_make_drafts_look_good(
    changes_at: float, before: float, after: float
) -> None:
    def slowness(time: float) -> float:
        return before if time < changes_at else after

    for acceptance, draft in ((0.0, 0.6), (0.3, 0.6), (0.9, 0.97)):
        machine = Machine(acceptance, draft, slowness=slowness)
        seconds = machine.write(DraftLength(share=0.6), 256)
        alone = Machine(acceptance, draft, slowness=slowness)
        never = DraftLength(share=0.6, most=0)
        assert seconds <= 1.03 * alone.write(never, 256)


def test_it_tries_again_when_the_text_becomes_easier() -> None:
    machine, lengths = Machine(0.05, 0.4), DraftLength(share=0.4)
    machine.write(lengths, 300)
    machine.acceptance, machine.lengths = 0.97, []
    machine.write(lengths, 700)
    assert sum(machine.lengths[-20:]) > 60


def test_no_more_is_drafted_than_may_be_written() -> None:
    lengths = DraftLength(share=0.1, acceptance=0.99)
    assert lengths.length(100) == 0  # nothing is timed yet
    for _ in range(3):
        lengths.record_step(1.0)
    assert [lengths.length(room) for room in (1, 2, 4, 100)] == [0, 1, 3, MOST]


def test_times_of_a_verification_follow_the_line_through_what_was_seen() -> None:
    lengths = DraftLength(share=0.5)
    for _ in range(3):
        lengths.record_step(1.0)
    assert lengths.verify_seconds(5) == pytest.approx(1.2)
    lengths.record_round(2, [1], 1.0, 1.4)
    assert [lengths.verify_seconds(rows) for rows in (2, 3, 5)] == pytest.approx([1.2, 1.4, 1.8])
    lengths.record_round(6, [1], 3.0, 1.6)
    assert [lengths.verify_seconds(rows) for rows in (5, 7, 9)] == pytest.approx([1.5, 1.6, 1.8])
