"""Every family of the matrix does what its row in docs/models.md says (`matrix.py`, which writes the page)."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest


def _matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("family_matrix", Path(__file__).with_name("matrix.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


matrix = _matrix()


@pytest.mark.parametrize("name", matrix.ROWS)
def test_the_row_of_the_page_is_what_runs(name: str, one_thread: None) -> None:
    row = matrix.examine(name)
    written = matrix.page_rows()[name]
    if not row.four_bit:  # bitsandbytes is not installed
        row = replace(row, four_bit=written.removesuffix(" |").split(" | ")[-1])
    assert matrix.line(row) == written, "run `python tests/families/write_page.py`"


def test_the_page_has_these_rows_and_this_text() -> None:
    page = matrix.PAGE.read_text()
    assert list(matrix.page_rows()) == list(matrix.ROWS)
    assert page.startswith(matrix._BEFORE)
    assert page.endswith(matrix._AFTER)
