"""`bench gpu` without a GPU: that it says so, and that its code runs."""

from __future__ import annotations

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
    assert len(found["rows"]["decode"]) == 7
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
