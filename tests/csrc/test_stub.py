"""`_C.pyi` gives the arguments and defaults that the extension takes.

`make types` runs stubtest, which compares the names and kinds of all objects. It cannot see the arguments: pybind11
puts the signature of a function in its docstring.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import layercoop_fast
from layercoop_fast import _C

STUB = ast.parse((Path(layercoop_fast.__file__).parent / "_C.pyi").read_text())


def is_property(function: ast.FunctionDef) -> bool:
    return bool(function.decorator_list)


FUNCTIONS = [(node.name, node) for node in STUB.body if isinstance(node, ast.FunctionDef)] + [
    (f"{owner.name}.{node.name}", node)
    for owner in STUB.body
    if isinstance(owner, ast.ClassDef)
    for node in owner.body
    if isinstance(node, ast.FunctionDef) and not is_property(node)
]


def arguments(function: ast.FunctionDef) -> dict[str, list[tuple[str, object]]]:
    """Each argument's name and default (`...` where it has none), by whether it may be given by position."""
    of = function.args
    assert not of.posonlyargs
    assert of.vararg is of.kwarg is None
    missing: list[ast.expr | None] = [None] * (len(of.args) - len(of.defaults))
    kinds = {"any": (of.args, missing + of.defaults), "keyword": (of.kwonlyargs, of.kw_defaults)}
    return {
        kind: [
            (name.arg, ... if default is None else ast.literal_eval(default))
            for name, default in zip(names, defaults, strict=True)
        ]
        for kind, (names, defaults) in kinds.items()
    }


@pytest.mark.parametrize(("name", "stub"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_arguments(name: str, stub: ast.FunctionDef) -> None:
    found: object = _C
    for part in name.split("."):
        found = getattr(found, part)
    [signature, *_] = str(found.__doc__).splitlines()
    [compiled] = ast.parse(f"def {signature}: ...").body
    assert isinstance(compiled, ast.FunctionDef)
    assert arguments(stub) == arguments(compiled)
