"""A history of runs: what is kept of each, and the page that plots it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from layercoop_fast.bench.history import Run, page, read_history, record
from layercoop_fast.bench.results import Figure, Results
from layercoop_fast.errors import RequestError

MACHINE = {"processor": "a chip", "cores": 2, "versions": {"layercoop-fast": "0.2.0"}}


def results(ours: float, **others: float) -> Results:
    ways = {"ours": [ours, 2 * ours, 3 * ours], **{way: [seconds] for way, seconds in others.items()}}
    return Results(MACHINE, {"size": "quick"}, [Figure("csrc", "plan of 8,000 masks", ways)])


def test_a_run_is_appended_with_its_medians(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    record(results(1.0, python=8.0), path)
    first = path.read_text()
    record(results(1.0, python=6.0, numpy=2.0), path)
    assert path.read_text().startswith(first)
    runs = read_history(path)
    assert [run.medians["csrc: plan of 8,000 masks"] for run in runs] == [
        {"ours": 2.0, "python": 8.0}, {"ours": 2.0, "python": 6.0, "numpy": 2.0}
    ]  # fmt: skip
    assert (runs[0].label, runs[0].machine, runs[0].settings) == ("0.2.0", "a chip, 2 cores", {"size": "quick"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{}", "KeyError"),
        ("[]", "TypeError"),
        (json.dumps({"schema": 2}), "schema 2"),
        (Run.of(results(1.0)).line().replace("2.0", "-2.0"), "no seconds"),
        ("half a li", "not JSON|Expecting"),
    ],
)
def test_a_line_that_is_no_run_is_refused_and_nothing_is_lost(line: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{Run.of(results(1.0)).line()}\n{line}\n")
    before = path.read_text()
    with pytest.raises(RequestError, match=f"history.jsonl line 2.*({why})"):
        record(results(1.0), path)
    assert path.read_text() == before


def test_the_page_plots_others_over_ours(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for each in (results(1.0, python=8.0), results(1.0, numpy=2.0), results(1.0, python=4.0)):
        record(each, path)
    lines = page(read_history(path)).splitlines()
    (python,) = [line for line in lines if "| python |" in line]
    (numpy,) = [line for line in lines if "| numpy |" in line]
    assert "| csrc: plan of 8,000 masks | python | 2.00 |" in python
    dots = ET.fromstring(python.split("|")[4].strip()).findall("circle")
    assert [dot.get("cx") for dot in dots] == ["0", "160"], "the second run did not measure it"
    assert float(dots[0].get("cy") or 0) < float(dots[1].get("cy") or 0), "higher is more"
    assert numpy.count("<circle") == 1
    assert len([line for line in lines if line.startswith("| ") and "a chip" in line]) == 3


def test_on_the_command_line(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out, history = tmp_path / "a.json", tmp_path / "history.jsonl"
    results(1.0, python=8.0).save(out)
    status, printed, _ = run("bench", "record", out, "--out", history)
    assert status == 0
    assert printed.startswith("0.2.0, 20")
    assert "run 1 of" in printed
    assert "record takes one file" in run("bench", "record", "--out", history)[2]
