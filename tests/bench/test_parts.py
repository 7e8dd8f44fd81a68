"""Benchmarks in parts: a file that grows row by row, is continued, and says what failed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HEAD = {"benchmark": "gpu", "title": "H100, torch 2.13.0, triton 3.9.0", "cuda": "13.0", "tiny": False,
        "machine": {"versions": {"torch": "2.13.0"}}}  # fmt: skip


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("record")


def test_rows_are_written_as_they_are_made_and_go_on_where_they_ended(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    first = record.Record.open(path, HEAD)
    first.add("kernels", "swiglu: ours", {"µs": 421.0, "tuned": {"gated": "wide"}})
    first.add("kernels", "head: ours", {"failed": "OutOfResources: shared memory"})
    written = json.loads(path.read_text())
    assert written["rows"]["kernels"]["swiglu: ours"]["µs"] == 421.0
    again = record.Record.open(path, HEAD)
    wanted = [("kernels", "swiglu: ours"), ("kernels", "head: ours"), ("kernels", "norm: ours"), ("decode", "ours")]
    assert [again.missing(*row) for row in wanted] == [False, True, True, True]
    again.end("kernels", 12.34, "it took more than its 110 seconds; rows that it had measured are kept")
    assert [line.split(":")[0] for line in again.problems] == ["kernels", "kernels, head"]
    table = path.with_suffix(".md").read_text()
    assert table.startswith("H100, torch 2.13.0, triton 3.9.0\n")
    assert "| swiglu: ours | 421 |" in table
    assert "| head: ours | failed: OutOfResources: shared memory |" in table
    assert "kernels: it took more than its 110 seconds" in table


@pytest.mark.parametrize("other", [{"title": "A100, torch 2.13.0, triton 3.9.0"}, {"cuda": "12.8"}, {"tiny": True}])
def test_a_file_of_another_machine_is_not_continued(other: dict[str, object], record: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    record.Record.open(path, HEAD).add("smoke", "graphs", {"difference": 0.0})
    assert record.Record.open(path, {**HEAD, **other}).missing("smoke", "graphs")
    path.write_text("half a fi")
    assert record.Record.open(path, HEAD).missing("smoke", "graphs")
