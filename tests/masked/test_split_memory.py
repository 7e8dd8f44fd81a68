"""What a memory budget is shared out to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from layercoop_fast.masked.forward import split_memory


def test_states_and_activations_fit_together() -> None:
    windows: Any = SimpleNamespace(state_bytes=1_000, ids=torch.zeros(1, 10), state_shape=(1, 10, 25))
    units: Any = SimpleNamespace(bytes_a_row=50)
    states, rows = split_memory(windows, units, 100_000)
    assert (states, rows) == (75, 500)
