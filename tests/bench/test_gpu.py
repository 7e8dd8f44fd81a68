"""`bench gpu` without a GPU: that it says so, and that its code runs."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_without_a_gpu_it_says_so(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    if not torch.cuda.is_available():
        status, printed, error = run("bench", "gpu", "--folder", BENCHMARKS, "--out", out)
        assert (status, printed) == (2, "")
        assert error.strip().splitlines() == [
            "layercoop-fast: bench gpu measures a GPU, and torch sees none here; --tiny runs its code without one"
        ]
    assert run("bench", "gpu", "csrc", "--folder", BENCHMARKS, "--out", out)[0] == 2
    assert "leave it out" in run("bench", "csrc", "--tiny")[2]
    out.write_text("")
    assert "--force" in run("bench", "gpu", "--tiny", "--folder", BENCHMARKS, "--out", out)[2]
    assert out.read_text() == ""
    # What a run left is continued, not refused: here by a folder that cannot.
    out.write_text('{"benchmark": "gpu"}')
    for name in ("conftest.py", "pytest.ini"):
        (tmp_path / name).touch()
    assert "gpu/bench_gpu.py" in run("bench", "gpu", "--tiny", "--folder", tmp_path, "--out", out)[2]


HEAD = {"benchmark": "gpu", "gpu": "H100", "triton": "3.9.0", "cuda": "13.0", "tiny": False,
        "machine": {"versions": {"torch": "2.13.0"}}}  # fmt: skip


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("gpu_record")


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


@pytest.mark.parametrize("other", [{"gpu": "A100"}, {"triton": "3.6.0"}, {"tiny": True}])
def test_a_file_of_another_machine_is_not_continued(other: dict[str, object], record: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    record.Record.open(path, HEAD).add("smoke", "graphs", {"difference": 0.0})
    assert record.Record.open(path, {**HEAD, **other}).missing("smoke", "graphs")
    path.write_text("half a fi")
    assert record.Record.open(path, HEAD).missing("smoke", "graphs")


def bench_gpu(folder: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(folder / "gpu" / "bench_gpu.py"), "--tiny", "--out", str(out), *options]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    return status, json.loads(out.read_text())


@pytest.mark.slow
def test_a_part_that_dies_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    """A driver that ends the process, such as after an illegal address, in the middle of a part."""
    folder = shutil.copytree(BENCHMARKS, tmp_path / "benchmarks")
    broken = folder / "gpu" / "gpu_networks.py"
    whole = broken.read_text()
    broken.write_text(
        whole.replace(
            "    work, calls = ", '    if way == "C++":\n        __import__("os")._exit(9)\n    work, calls = '
        )
    )
    status, found = bench_gpu(folder, tmp_path / "gpu.json", "--only", "surrogate,decode")
    assert status == 1
    assert "status 9" in found["parts"]["surrogate"]["problem"]
    assert found["parts"]["decode"]["problem"] is None
    assert len(found["rows"]["surrogate"]) == 3
    assert len(found["rows"]["decode"]) == 6
    before = found["rows"]["surrogate"]
    broken.write_text(whole)
    status, found = bench_gpu(folder, tmp_path / "gpu.json", "--only", "surrogate")
    assert status == 0
    assert {name: found["rows"]["surrogate"][name] for name in before} == before, "measured twice"
    assert len(found["rows"]["surrogate"]) == 22


@pytest.mark.slow
def test_its_code_runs_at_a_tiny_size(tmp_path: Path) -> None:
    status, found = bench_gpu(BENCHMARKS, tmp_path / "gpu.json")
    assert status == 0, json.dumps(found, indent=1)
    rows = found["rows"]
    assert rows.keys() == {"smoke", "engine", "decode", "kernels", "surrogate", "1b"}
    operations = {row.split(":")[0] for row in rows["kernels"]}
    assert len(operations) == 15
    assert all(
        {f"{name}: ours", f"{name}: oracle"} <= rows["kernels"].keys() for name in operations if "delta" not in name
    )
    ours = rows["engine"]["tiny, 2 × 6, 6 masks: ours"]
    assert (ours["blocks"], ours["head"]) == ("pool", "fused")
    assert all(row["tokens a second"] > 0 for row in rows["decode"].values())
    assert "all 2^6 masks, 12 units, pairs and best: C++" in rows["surrogate"]
