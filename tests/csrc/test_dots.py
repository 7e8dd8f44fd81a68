"""The switch that turns instructions for dot products off."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from layercoop_fast import _C

CODE = "from layercoop_fast import _C; before = _C.dots(); _C.allow_dots(True); print(before, _C.dots())"


@pytest.mark.parametrize(("setting", "allowed"), [(None, True), ("1", True), ("0", False)])
def test_the_environment_turns_dot_products_off(setting: str | None, allowed: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("LAYERCOOP_DOTS", "LAYERCOOP_ISA")}
    environment |= {} if setting is None else {"LAYERCOOP_DOTS": setting}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    found, possible = done.stdout.strip().replace("] [", "]|[").split("|")
    assert found == (possible if allowed else "[]")


def test_dot_products_can_be_turned_off_and_on(restore_core: None) -> None:
    before = _C.dots()
    _C.allow_dots(False)
    assert _C.dots() == []
    _C.allow_dots(True)
    assert set(before) <= set(_C.dots())
