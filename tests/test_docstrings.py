"""Public functions that take or return arrays say in their docstring what shape these have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import layercoop_fast

ROOT = Path(layercoop_fast.__file__).parent
ARRAYS = re.compile(r"\b(Tensor|NDArray|ndarray|Masks|Floats|Ints|Halves|MaskLike|Array)\b")
# A shape in brackets: `[M, n]`, `float64[M]`, `[..., W]`, `[2L]`, `[]` of a scalar.
SHAPE = re.compile(r"\[(\.\.\.|…|[\w·*+/() −-]+)?(, ?[\w·*+/() −.-]+)*,?\]")
# Files of Triton kernels: the functions that the compiler reads take pointers, and a kernel's launcher says the shapes.
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Functions and methods without a leading underscore, of classes without one."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node


def annotations(function: Function) -> str:
    given = [each.annotation for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return " ".join(ast.unparse(each) for each in (*given, function.returns) if each is not None)


def test_every_array_has_a_shape() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{function.lineno} {name}"
        for path in sorted(ROOT.rglob("*.py"))
        for name, function in public_functions(path)
        if ARRAYS.search(annotations(function)) and not SHAPE.search(ast.get_docstring(function) or "")
    ]
    assert not silent, "no shape in the docstring of:\n" + "\n".join(silent)
