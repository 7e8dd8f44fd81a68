"""Time is counted once, under the name of the innermost span, and a trace holds every span."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from layercoop_fast import spans
from layercoop_fast.spans import BLOCK_PRODUCTS, HEAD_PRODUCTS, Spans, timed


class Clock:
    """A clock that tests turn by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_a_span_counts_what_the_spans_in_it_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with Spans() as watched:
        clock.now += 1
        with timed("outer"):
            clock.now += 2
            with timed("inner"):
                clock.now += 4
            with timed("inner"):
                clock.now += 8
            clock.now += 16
    assert dict(watched.seconds) == {"outer": 18, "inner": 12}
    assert (watched.wall, watched.idle) == (31, 1)


def test_nothing_is_counted_outside_and_the_outer_watch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with timed("before"):
        clock.now += 1
    with Spans() as outer:
        with pytest.raises(ValueError, match="stop"), Spans() as inner, timed("work"):
            clock.now += 2
            raise ValueError("stop")
        with timed("work"):
            clock.now += 4
    assert (dict(inner.seconds), dict(outer.seconds)) == ({"work": 2}, {"work": 4})


def test_share_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with Spans() as watched:
        for name, seconds in ((BLOCK_PRODUCTS, 5), (HEAD_PRODUCTS, 3), ("rest", 2)):
            with timed(name):
                clock.now += seconds
    assert watched.share_of_products == 0.8
    assert Spans().share_of_products == 0.0


def test_the_trace_holds_every_span_up_to_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(spans, "MOST_EVENTS", 2)
    with Spans(trace=True) as watched:
        clock.now += 0.5
        for _ in range(3):
            with timed("work"):
                clock.now += 0.25
    watched.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert [(event["name"], event["ph"], event["ts"], event["dur"]) for event in trace["traceEvents"]] == [
        ("work", "X", 500_000, 250_000),
        ("work", "X", 750_000, 250_000),
    ]
    assert trace["otherData"]["dropped"] == 1
