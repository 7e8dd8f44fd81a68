"""No function takes more than ten parameters: options travel as dataclasses (`game/options.py`).

What the package exports takes its options by keyword, and is spared: functions of `__all__`, and `__init__` and class
methods of its classes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import layercoop_fast

ROOT = Path(layercoop_fast.__file__).parent
MOST = 10
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """All functions and methods of a file; what is exported by the package and spared is left out."""
    exported = set(layercoop_fast.__all__)

    def within(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, Function]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from within(node.body, node.name)
            elif isinstance(node, Function):
                decorators = [ast.unparse(each) for each in node.decorator_list]
                spared = owner in exported and (node.name == "__init__" or "classmethod" in decorators)
                # A Triton kernel takes pointers and strides one by one: there are no objects there.
                kernel = any("jit" in each for each in decorators)
                if not spared and not kernel and not (owner == "" and node.name in exported):
                    yield f"{owner}.{node.name}".lstrip("."), node
                yield from within(node.body, owner or node.name)

    return within(ast.parse(path.read_text(encoding="utf-8")).body, "")


def n_parameters(function: Function) -> int:
    """Parameters but for `self` and `cls`."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + (given.vararg is not None) + (given.kwarg is not None)


def test_no_function_takes_more_than_ten_parameters() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno} {name} takes {count}"
        for path in sorted(ROOT.rglob("*.py"))
        for name, function in functions(path)
        if (count := n_parameters(function)) > MOST
    ]
    assert not long, "too many parameters:\n" + "\n".join(long)
