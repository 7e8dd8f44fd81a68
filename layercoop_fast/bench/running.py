"""Running the benchmarks of the source tree with pytest-benchmark, in a process of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import layercoop_fast
from layercoop_fast.bench.results import Figure, Results
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.system.processes import tied

SIZES = ("quick", "full")


def benchmarks_folder(folder: Path | None = None) -> Path:
    """The `benchmarks` folder: the one named, or in the working directory, or next to the package's source.

    Raises `RequestError` where there is none: benchmarks are part of the source tree and are not installed.
    """
    if folder is not None:
        places = [folder]
    else:
        places = [Path("benchmarks"), Path(layercoop_fast.__file__).parents[1] / "benchmarks"]
    for place in places:
        if (place / "conftest.py").is_file() and (place / "pytest.ini").is_file():
            return place.resolve()
    raise RequestError(
        "the benchmarks are not here: they are in the project's source tree; run this in a clone of it, or name its "
        "benchmarks folder (folder=)"
    )


def suites(folder: Path) -> list[str]:
    """The names that can be run: the sub-folders that hold benchmarks for pytest."""
    return sorted({path.parent.name for path in folder.glob("*/test_*.py")})


def run_benchmarks(
    folder: Path,
    names: Sequence[str],
    *,
    size: str,
    model: str | None,
    on_suite: Callable[[Results, Results], None] | None = None,
) -> Results:
    """Run the named suites (all of them where none is named), each in its own process; return what they measured.

    What pytest prints goes to standard error as it comes.

    Args:
        folder: as `benchmarks_folder` found it.
        names: of `suites(folder)`.
        size: "quick" or "full".
        model: checkpoint folder; the small real model where None.
        on_suite: called after each suite with its results, and with those of all suites so far.

    Raises `RequestError` for an unknown suite or where pytest-benchmark is not installed, and `RunError` when a
    benchmark fails.
    """
    known = suites(folder)
    for name in names:
        if name not in known:
            raise RequestError(f"unknown benchmarks {name!r}: choose from {', '.join(known)}, or compare A.json B.json")
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise RequestError("the benchmarks need pytest-benchmark: pip install 'layercoop-fast[dev]'")
    settings = {"size": size, "model": model or "default"}
    found: list[Figure] = []
    for name in names or known:
        raw = _run_suite(folder, name, size, model)
        figures = _figures(raw)
        found += figures
        results = Results(_machine(raw), settings, list(found))
        if on_suite is not None:
            on_suite(replace(results, figures=figures), results)
    return results


def _run_suite(folder: Path, name: str, size: str, model: str | None) -> dict[str, Any]:
    """What pytest-benchmark wrote of a suite."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "raw.json"
        command = tied("pytest", "-c", str(folder / "pytest.ini"), "--size", size)
        command += ["--benchmark-json", str(out), *(["--model", model] if model else []), str(folder / name)]
        done = subprocess.run(command, cwd=folder, stdout=sys.stderr, check=False)
        if done.returncode != 0 or not out.exists():
            raise RunError(f"the benchmarks of {name} ended with status {done.returncode}; see what they printed above")
        raw: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return raw


IN_PARTS = ("cpu", "gpu")
"""Benchmarks of one machine, by what they measure: scripts that write a file row by row."""


@dataclass(frozen=True)
class MachineRun:
    """How a machine is measured.

    Attributes:
        tiny: sizes that mean nothing; on a GPU's code, without one.
        long: what takes minutes too.
        afresh: also what a file that is there holds already.
    """

    tiny: bool = False
    long: bool = False
    afresh: bool = False


def is_begun(path: Path, what: str) -> bool:
    """Whether a file is what `run_in_parts` wrote of "cpu" or "gpu", so that a further run may continue it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("benchmark") == what


def run_in_parts(folder: Path, names: Sequence[str], out: Path, run: MachineRun, *, quiet: bool = False) -> Any:
    """Measure this machine by the folder's `cpu/bench_cpu.py` or `gpu/bench_gpu.py`: `out`, and a table next to it.

    Returns what `out` holds, a dict. If `quiet`, what the script prints goes to standard error.

    Raises `RequestError` for "gpu" without a GPU (`run.tiny` needs none) or without Triton, or where `names` ask for
    more than one benchmark, and `RunError` when a part of it fails.
    """
    what = names[0]
    if len(names) > 1 or what not in IN_PARTS:
        raise RequestError(f"bench {' and bench '.join(IN_PARTS)} are run by themselves: name no other suites with one")
    if what == "gpu":
        _check_gpu(tiny=run.tiny)
    script = folder / what / f"bench_{what}.py"
    if not script.is_file():
        raise RequestError(f"{folder} holds no {what}/bench_{what}.py: name the benchmarks folder of a whole clone")
    command = tied(str(script), "--out", str(out.resolve()))
    command += [f"--{name}" for name, wanted in asdict(run).items() if wanted]
    done = subprocess.run(command, stdout=sys.stderr if quiet else None, check=False)
    if done.returncode != 0:
        raise RunError(f"bench {what} ended with status {done.returncode}; what failed is printed above, and in {out}")
    return json.loads(out.read_text(encoding="utf-8"))


def _check_gpu(*, tiny: bool) -> None:
    import torch

    if importlib.util.find_spec("triton") is None:
        raise RequestError("bench gpu needs Triton: pip install 'layercoop-fast[triton]'")
    if not tiny and not torch.cuda.is_available():
        raise RequestError("bench gpu measures a GPU, and torch sees none here; tiny=True runs its code without one")


def _machine(raw: dict[str, Any]) -> dict[str, Any]:
    machine: dict[str, Any] = raw["machine_info"]["layercoop_fast"]
    return machine


def _figures(raw: dict[str, Any]) -> list[Figure]:
    """One figure for each group. A way that ran on a sample only gives `scale`, the factor to the whole."""
    figures: dict[tuple[str, str], Figure] = {}
    for one in raw["benchmarks"]:
        folder, extra = Path(one["fullname"].split("::")[0]).parent.name, one["extra_info"]
        figure = figures.setdefault((folder, one["group"]), Figure(folder, one["group"], {}))
        figure.ways[extra["way"]] = [extra.get("scale", 1.0) * second for second in one["stats"]["data"]]
    return list(figures.values())
