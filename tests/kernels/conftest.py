"""Shared by the kernels' tests: every instruction set of the machine, and a comparison that says how far off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layercoop_fast import _C

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=_C.isa_available())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn, with three threads so that ranges are really shared."""
    isa, threads = _C.isa(), _C.num_threads()
    _C.set_isa(request.param)
    _C.set_num_threads(3)
    yield request.param
    _C.set_isa(isa)
    _C.set_num_threads(threads)
