"""`bench cpu`: what it reads from the programs beside it, and that its code runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What llama-batched-bench prints, by speeds of prompts and of answers.
PROGRAM = """#!/bin/sh
case "$*" in *-rtr*) answer=77.5;; *) answer=50.0;; esac
echo "main: n_kv_max = 64, n_batch = 2048, flash_attn = 1"
echo "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |"
echo "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|"
echo "|    16 |      3 |    1 |     19 |    0.100 |   160.00 |    0.060 |    $answer |    0.160 |   118.75 |"
"""
QUANTISE = """#!/bin/sh
while [ $# -gt 3 ]; do shift; done
cp "$1" "$2"
"""


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which both programs stand, as the scripts leave them."""
    for name in ("llama.cpp", "ik_llama.cpp"):
        folder = tmp_path / "layercoop_fast" / "peers" / name
        folder.mkdir(parents=True)
        for program, text in (("llama-batched-bench", PROGRAM), ("llama-quantize", QUANTISE)):
            if name == "ik_llama.cpp":  # whose table goes to standard error
                text = text.replace("\n", "\nexec 1>&2\n", 1)
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "layercoop_fast" / "peers"


def test_the_speeds_of_a_program_are_read_from_its_table(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (BENCHMARKS, BENCHMARKS / "cpu"):
        monkeypatch.syspath_prepend(str(folder))
    found = importlib.import_module("cpu_peers")
    here = found.peers_here(2)
    assert [(peer.name, peer.way) for peer in here] == [
        ("llama.cpp", ("-fa", "on")), ("ik_llama.cpp", ()), ("ik_llama.cpp", ("-rtr",))
    ]  # fmt: skip
    speeds = [peer.speeds(Path("model.gguf"), found.Run(16, 3)) for peer in here]
    assert [(each.prompt, each.answer) for each in speeds] == [(160.0, 50.0), (160.0, 50.0), (160.0, 77.5)]
    for says in ('echo "|    PP |     TG |"', "echo error: unable to load model >&2; exit 1"):
        (peers / "llama.cpp" / "llama-batched-bench").write_text(f"#!/bin/sh\n{says}\n")
        with pytest.raises(RuntimeError, match=r"llama\.cpp ended with status"):
            here[0].speeds(Path("model.gguf"), found.Run(16, 3))


def test_it_is_run_by_itself(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    assert "name no other suites" in run("bench", "cpu", "csrc", "--folder", BENCHMARKS, "--out", out)[2]
    out.write_text("")
    assert "--force" in run("bench", "cpu", "--tiny", "--folder", BENCHMARKS, "--out", out)[2]
    for name in ("conftest.py", "pytest.ini"):
        (tmp_path / name).touch()
    out.write_text('{"benchmark": "cpu"}')  # is continued, not refused: here by a folder that cannot
    assert "cpu/bench_cpu.py" in run("bench", "cpu", "--tiny", "--folder", tmp_path, "--out", out)[2]


@pytest.mark.slow
@pytest.mark.usefixtures("peers")
def test_its_code_runs_at_a_tiny_size(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    command = [sys.executable, str(BENCHMARKS / "cpu" / "bench_cpu.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: dict[str, Any] = json.loads(out.read_text())["rows"]
    assert rows.keys() == {"machine", "135m", "1b", "3b", "engine"}
    for format in ("bf16", "int8", "int4"):
        found = rows["1b"][f"{format}, decode, 1 at once"]
        assert found["ik_llama.cpp"] == 77.5, "not the faster of its ways"
        assert found["÷ ik_llama.cpp"] > 0
        assert rows["1b"][f"{format}, prompt of 33"]["llama.cpp"] == 160
        assert rows["1b"][f"{format}, 8 masks"]["blocks that run ÷ one mask"] == pytest.approx(4 / 3)
