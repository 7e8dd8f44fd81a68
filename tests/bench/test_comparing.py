"""Two runs are said to differ only where their own noise does not explain it."""

from __future__ import annotations

import numpy as np

from layercoop_fast.bench.comparing import compare, differing_machines
from layercoop_fast.bench.results import Figure, Results


def run(**ways: list[float]) -> Results:
    return Results({"processor": "x", "cores": 2}, {"size": "quick"}, [Figure("engine", "block", ways)])


def rounds(median: float, noise: float, count: int = 21, seed: int = 0) -> list[float]:
    return (median * (1 + noise * np.random.default_rng(seed).standard_normal(count))).tolist()


def test_a_change_beyond_the_noise_is_told_with_its_direction() -> None:
    first = run(ours=rounds(1.0, 0.01), torch=rounds(2.0, 0.01))
    second = run(ours=rounds(0.9, 0.01, seed=1), torch=rounds(2.3, 0.01, seed=2))
    ours, torch = compare(first, second)
    assert (ours.way, ours.verdict, torch.way, torch.verdict) == ("ours", "faster", "torch", "slower")
    assert ours.low < ours.ratio < ours.high < 1 < torch.low < torch.ratio < torch.high


def test_noise_is_no_change() -> None:
    (change,) = compare(run(ours=rounds(1.0, 0.3)), run(ours=rounds(1.1, 0.3, seed=1)))
    assert change.verdict == "same"
    (change,) = compare(run(ours=[1.0] * 9), run(ours=[1.015] * 9))  # steady, but less than 2 %
    assert change.verdict == "same"


def test_too_few_rounds_are_not_judged() -> None:
    (change,) = compare(run(ours=[1.0] * 4), run(ours=[9.0] * 9))
    assert (change.verdict, change.ratio) == ("too few rounds", 9.0)


def test_only_what_both_timed_is_compared_and_the_answer_is_repeatable() -> None:
    first, second = run(ours=rounds(1, 0.1), hf=[1.0] * 5), run(ours=rounds(1, 0.1, seed=3), torch=[1.0] * 5)
    assert [change.way for change in compare(first, second)] == ["ours"]
    assert compare(first, second) == compare(first, second)
    other = Results(first.machine, first.settings, [Figure("game", "block", {"ours": [1.0] * 5})])
    assert compare(first, other) == []


def test_machines_and_settings_that_differ_are_named() -> None:
    other = Results({"processor": "y", "cores": 2}, {"size": "full"}, [])
    assert differing_machines(run(ours=[1.0]), other) == ["processor", "size"]
    assert differing_machines(run(ours=[1.0]), run(ours=[2.0])) == []
