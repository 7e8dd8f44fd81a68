from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from layercoop_fast import _C

ARM = platform.machine() in ("aarch64", "arm64")
LEVELS = ["portable", "neon"] if ARM else ["portable", "avx2", "avx512"]
FOREIGN = ["avx2", "avx512"] if ARM else ["neon"]


def import_under(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from layercoop_fast import _C; print(_C.isa())"
    environment = {**os.environ, "LAYERCOOP_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_levels_are_those_of_the_machine() -> None:
    available = _C.isa_available()
    assert available == LEVELS[: len(available)]
    assert available[0] == "portable"
    assert _C.isa() in available


@pytest.mark.parametrize("name", _C.isa_available())
def test_a_level_can_be_forced(name: str, restore_core: None) -> None:
    _C.set_isa(name)
    assert _C.isa() == name


@pytest.mark.parametrize("name", ["", "AVX2", "sse4", "avx512 "])
def test_an_unknown_level_is_refused(name: str) -> None:
    before = _C.isa()
    with pytest.raises(ValueError, match=f"^set_isa: unknown instruction set '{name}'; use one of portable"):
        _C.set_isa(name)
    assert _C.isa() == before


def test_levels_that_the_machine_lacks_are_refused() -> None:
    for name in LEVELS[len(_C.isa_available()) :] + FOREIGN:
        with pytest.raises(ValueError, match=rf"this machine lacks '{name}'; it has portable"):
            _C.set_isa(name)


@pytest.mark.parametrize("name", _C.isa_available())
def test_the_environment_forces_a_level(name: str) -> None:
    assert import_under(name).stdout.strip() == name


def test_a_bad_environment_is_a_clear_error_at_import() -> None:
    done = import_under("sse9")
    assert done.returncode != 0
    assert done.stderr.strip().endswith(
        f"ImportError: LAYERCOOP_ISA: unknown instruction set 'sse9'; use one of {', '.join(_C.isa_available())}"
    )
