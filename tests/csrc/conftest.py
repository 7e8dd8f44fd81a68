"""Helper modules beside this file (`plan_oracle`) are importable by their plain name, as those of `tests` are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layercoop_fast import _C

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def restore_core() -> Iterator[None]:
    """Puts back the instruction set and the number of threads that a test changes."""
    isa, threads = _C.isa(), _C.num_threads()
    yield
    _C.set_isa(isa)
    _C.set_num_threads(threads)
