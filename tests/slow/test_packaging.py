"""An sdist builds, a wheel builds from it, and what is installed from that works from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_sdist_wheel_install(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"csrc/plan.h", "csrc/cpu/pool.h", "layercoop_fast/_C.pyi", "layercoop_fast/py.typed", "LICENSE"} <= names
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", wheel)
    # The big libraries are borrowed from here, the package itself is not: it comes first on the path.
    environment = {**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])}
    where = run(python, "-c", "import layercoop_fast; print(layercoop_fast.__file__)", cwd=tmp_path)
    assert str(tmp_path / "venv") in where
    script = tmp_path / "venv" / "bin" / "layercoop-fast"
    assert "3 masks" in run(script, "plan", "--layers", "4", "--masks", "3", cwd=tmp_path, env=environment)
