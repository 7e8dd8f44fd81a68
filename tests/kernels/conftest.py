"""Shared by the kernels' tests: every instruction set of the machine, and the core put back as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from layercoop_fast import _C

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=_C.isa_available())
def level(request: pytest.FixtureRequest, restore_core: None) -> str:
    """Each instruction set in turn, with three threads so that ranges are really shared."""
    _C.set_isa(request.param)
    _C.set_num_threads(3)
    return str(request.param)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The oracles' operations are so small that torch's threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
