"""`bench gpu` without a GPU: that it says so, and that its code runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


@pytest.mark.slow
def test_its_code_runs_at_a_tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from layercoop_fast.kernels.gpu.frame import interpreted

    if not interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: its kernels run on the GPU here")
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    bench_gpu = importlib.import_module("bench_gpu")
    with np.errstate(all="ignore"):  # the interpreter computes by NumPy, which warns of infinities that kernels mean
        found, failed = bench_gpu.run(list(bench_gpu.PARTS), tiny=True)
    assert not failed, json.dumps(found, indent=1)
    assert {"kernels", "engine, tiny, 2 × 6", "decode, tiny", "surrogate"} <= found.keys()
    by_operation = {entry["operation"]: entry["ways"].keys() for entry in found["kernels"]}
    assert by_operation.pop("gated delta rule") == {"oracle", "transformers' module"}
    assert all(
        {"ours", "oracle", "torch.compile"} <= ways for name, ways in by_operation.items() if "attention" not in name
    )
    assert all({"ours", "oracle"} <= ways for ways in by_operation.values())
    engine = found["engine, tiny, 2 × 6"]
    assert (engine["blocks"], engine["head"]) == ("pool", "fused")
    assert engine["seconds"].keys() == {"ours", "skipping", "published", "floor"}
    assert all(isinstance(speed, float) for speed in found["decode, tiny"]["tokens_a_second"].values())
    whats = {entry["what"]: entry["seconds"] for entry in found["surrogate"]}
    assert {"ours", "C++", "torch", "torch.compile"} <= whats["all 2^6 masks, 12 units"].keys()
    assert all(isinstance(time, float) for ways in whats.values() for time in ways.values())
    text = bench_gpu.table(json.loads(json.dumps(found)))
    assert "| gather_norm |" in text
    assert "| ours, eight masks |" in text
    assert "| all 2^6 masks, 12 units, pairs and best | ours |" in text
