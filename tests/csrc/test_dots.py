"""The switches that turn instructions for dot products and for products of matrices off."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from layercoop_fast import _C

CODE = """
from layercoop_fast import _C
print("|".join(_C.dots()))
_C.allow_dots(True)
_C.allow_matrices(True)
print("|".join(_C.dots()))
"""


def found_and_possible(settings: dict[str, str]) -> list[list[str]]:
    """What a process uses with these environment variables, and what it uses after it allowed everything."""
    own = ("LAYERCOOP_DOTS", "LAYERCOOP_MATRICES", "LAYERCOOP_ISA")
    environment = {name: value for name, value in os.environ.items() if name not in own} | settings
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    return [[name for name in line.split("|") if name] for line in done.stdout.split("\n")[:2]]


@pytest.mark.parametrize(("setting", "allowed"), [(None, True), ("1", True), ("0", False)])
def test_the_environment_turns_dot_products_off(setting: str | None, allowed: bool) -> None:
    found, possible = found_and_possible({} if setting is None else {"LAYERCOOP_DOTS": setting})
    assert found == (possible if allowed else [])


def test_the_environment_turns_products_of_matrices_off() -> None:
    found, possible = found_and_possible({"LAYERCOOP_MATRICES": "0"})
    assert found == [name for name in possible if "matrices" not in name]


def test_dot_products_can_be_turned_off_and_on(restore_core: None) -> None:
    before = _C.dots()
    _C.allow_dots(False)
    assert _C.dots() == []
    _C.allow_dots(True)
    assert set(before) <= set(_C.dots())
