"""`layercoop-fast bench` on a folder of toy benchmarks, with the real set-up that they share."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from layercoop_fast.bench.results import Results
from layercoop_fast.bench.running import benchmarks_folder, run_benchmarks, suites
from layercoop_fast.bench.tables import show_results
from layercoop_fast.errors import RequestError, RunError

REAL = Path(__file__).parents[2] / "benchmarks"
TOY = """
import time
import pytest

@pytest.mark.benchmark(group="a nap")
@pytest.mark.parametrize(("way", "seconds"), [("ours", 0.001), ("theirs", 0.01)])
def test_nap(clock, full, way, seconds):
    clock(way, lambda: time.sleep(seconds), rounds=5, scale=3.0 if way == "theirs" else 1.0)

@pytest.mark.benchmark(group="nothing")
def test_fails(clock, full):
    if full:
        raise AssertionError
    clock("ours", int)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark measures nothing in such a worker
    made = tmp_path / "benchmarks"
    (made / "toy").mkdir(parents=True)
    for name in ("conftest.py", "pytest.ini", "machine.py"):
        shutil.copy(REAL / name, made / name)
    (made / "toy" / "test_nap.py").write_text(TOY)
    return made


def bench(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "layercoop_fast", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_prints_the_figures_writes_them_and_compares_two_runs(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    done = bench("toy", "--out", out, "--json", cwd=tmp_path)  # the working directory's benchmarks are found
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(out.read_text())
    shown = Console(record=True, file=io.StringIO(), width=200)
    show_results(Results.load(out), shown)
    printed = shown.export_text()
    assert "toy: a nap" in printed
    assert "theirs" in printed
    figure, _ = Results.load(out).figures
    assert (figure.folder, figure.name, len(figure.ways["ours"])) == ("toy", "a nap", 5)
    assert 10 < (figure.ratio("theirs") or 0) < 60  # 3 × 10 ms ÷ 1 ms, and sleeping takes a little longer
    machine = Results.load(out).machine
    assert machine["cores"] >= 1
    assert {"torch", "transformers"} <= machine["versions"].keys()
    slower = json.loads(out.read_text())
    slower["figures"][0]["ways"]["ours"] = [9 * second for second in figure.ways["ours"]]
    (tmp_path / "b.json").write_text(json.dumps(slower))
    done = bench("compare", out, tmp_path / "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "slower" in done.stdout
    assert "same" in done.stdout
    found = json.loads(bench("compare", out, tmp_path / "b.json", "--json", cwd=tmp_path).stdout)
    assert [(one["way"], one["verdict"]) for one in found["changes"]][:2] == [("ours", "slower"), ("theirs", "same")]
    assert found["differing"] == []


def test_suites_before_one_that_fails_are_shown_and_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "zoo").mkdir()
    (folder / "zoo" / "test_nap.py").write_text(TOY.replace("if full", "if True"))
    assert suites(folder) == ["toy", "zoo"]
    out = tmp_path / "a.json"
    done = bench("--out", out, cwd=tmp_path)
    assert done.returncode == 1
    assert "the benchmarks of zoo ended with status 1" in done.stderr.splitlines()[-1]
    assert "toy: a nap" in done.stdout
    assert [figure.folder for figure in Results.load(out).figures] == ["toy", "toy"]


def test_a_benchmark_that_fails_is_a_failure(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ended with status 1"):
        run_benchmarks(folder, ["toy"], size="full", model=None)


def test_bad_requests(folder: Path, tmp_path: Path) -> None:
    assert suites(folder) == ["toy"]
    assert {"csrc", "game", "masked", "surrogate"} <= set(suites(REAL))
    with pytest.raises(RequestError, match=r"unknown benchmarks 'toys': choose from toy, or compare"):
        run_benchmarks(folder, ["toys"], size="quick", model=None)
    with pytest.raises(RequestError, match="are in the project's source tree"):
        benchmarks_folder(tmp_path / "nowhere")
    assert benchmarks_folder() == REAL  # found beside the package
    for arguments, message in [
        (["compare", "a"], "compare takes two files"),
        (["compare", "a", "b"], "cannot be read"),
    ]:
        done = bench(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
