"""What the scripts of `benchmarks/` and `examples/` import is there: nothing else in the quick suite would miss it."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import save_tiny

from layercoop_fast.bench.running import run_benchmarks, suites

ROOT = Path(__file__).parents[2]


def _imported(script: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            yield from ((node.module, alias.name) for alias in node.names)


def _defined(path: Path) -> set[str]:
    """Names at the top of a script, which is not run."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return names


def _missing(script: Path) -> Iterator[str]:
    root = ROOT / script.relative_to(ROOT).parts[0]
    for module, name in _imported(script):
        path = root.joinpath(*module.split(".")).with_suffix(".py")
        if path.exists():
            there = name in _defined(path)
        elif module.split(".")[0] == "layercoop_fast":
            there = hasattr(importlib.import_module(module), name) or bool(find_spec(f"{module}.{name}"))
        else:
            there = not (root / module.split(".")[0]).is_dir() or bool(find_spec(module))
        if not there:
            yield f"{script.relative_to(ROOT)}: {module} has no {name}"


def test_what_scripts_import_is_there() -> None:
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    assert len(scripts) > 60
    assert not [missing for script in sorted(scripts) for missing in _missing(script)]


@pytest.mark.slow
def test_every_suite_runs_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark measures nothing in such a worker
    save_tiny(tmp_path / "model", n_layers=10, max_position_embeddings=256)
    results = run_benchmarks(ROOT / "benchmarks", [], size="quick", model=str(tmp_path / "model"))
    assert {figure.folder for figure in results.figures} == set(suites(ROOT / "benchmarks"))
