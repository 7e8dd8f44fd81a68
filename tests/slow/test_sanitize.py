"""The C++ that threads share, under the sanitizers of memory, undefined behaviour and races."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_programs_run_clean_under_the_sanitizers() -> None:
    done = subprocess.run(
        ["make", "sanitize"], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
