"""The order of the packages: a module imports only what stands above it, and no two modules import each other.

Imports that only type checkers see count: what a signature names has to be known to its reader too.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import layercoop_fast

ROOT = Path(layercoop_fast.__file__).parent
ORDER = (
    *("_version", "_C", "shown", "errors", "files", "spans", "progress", "system", "inputs"),
    *("masks", "kernels", "engine", "llama", "texts", "masked", "workers", "game"),
    *("surrogate", "shapley", "repair", "search", "export", "runtime", "tasks", "serving"),
    *("report", "pruning", "healing", "comparing", "bench", "cli", "__main__"),
)
# A page of names at the package's top that are imported when they are first used.
FACADE = "layercoop_fast"


def imports() -> dict[str, set[str]]:
    """Every module of the package, by its dotted name, and the modules of the package that it imports."""
    paths = {_name(path): path for path in [*ROOT.rglob("*.py"), ROOT / "_C.pyi"]}
    return {name: set(_imported(name, path, set(paths))) - {name, FACADE} for name, path in paths.items()}


def _name(path: Path) -> str:
    parts = (ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, modules: set[str]) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: imports are absolute here"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [each if each in modules else str(node.module) for each in named]
    return [each for each in found if each in modules]


def test_every_module_imports_what_stands_above_it() -> None:
    place = {name: number for number, name in enumerate(ORDER)}
    upwards = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if name != FACADE and place[name.split(".")[1]] < place[other.split(".")[1]]
    ]
    assert not upwards


def test_no_modules_import_each_other() -> None:
    graph = imports()
    graph[FACADE] = set()
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_few_modules_stand_at_the_top() -> None:
    assert len([path for path in ROOT.glob("*.py") if path.stem not in ("__init__", "__main__")]) < 10
