"""Shared by the engine's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Triton's kernels run in its interpreter; it warns of the infinities that kernels mean, which chips do not."""
    from layercoop_fast.kernels.gpu.frame import interpreted

    if not interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: its kernels run on the GPU here")
    with np.errstate(all="ignore"):
        yield
