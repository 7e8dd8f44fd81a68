"""Several processes that share each batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layercoop_fast import RequestError
from layercoop_fast.healing.processes import Processes

OPTIONS = ["--text", "self", "--window", "32", "--batch", "8", "--tokens", "2048", "--learning-rate", "0.003", "--json"]


def healed(full: Path, cut: Path, out: Path, *launcher: str) -> dict[str, Any]:
    command = [*launcher, "-m", "layercoop_fast", "heal", str(cut), "--teacher", str(full), "--out", str(out), *OPTIONS]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)  # one process prints
    return found["healing"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_two_processes_do_what_one_does(full: Path, cut: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    two = healed(full, cut, tmp_path / "two", *launcher)
    one = healed(full, cut, tmp_path / "one")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["tokens"] == two["tokens"] == 2048
    for first, second in zip(one["curve"], two["curve"], strict=True):
        assert second["choice"]["self"] == pytest.approx(first["choice"]["self"], abs=2e-3)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=2e-3)


def test_a_batch_is_shared_equally() -> None:
    processes = Processes(cpu=True)
    assert processes.share(8) == slice(0, 8)
    processes.rank, processes.size = 1, 2
    assert processes.share(8) == slice(4, 8)
    with pytest.raises(RequestError, match="batch=7 windows cannot be shared by 2 processes"):
        processes.share(7)
