"""The forecast's arithmetic, against a small model and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import tiny_model

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.forecast import ModelShape, forecast

SHAPE = ModelShape(layers=4, hidden=48, intermediate=80, kv_ratio=1 / 3, vocabulary=300, itemsize=4)


def test_block_weights_are_those_of_a_real_block() -> None:
    block = tiny_model("llama", 1).model.layers[0]
    linear = sum(parameter.numel() for parameter in block.parameters() if parameter.dim() == 2)
    assert SHAPE.block_params == linear


def test_counts_flop_and_memory_by_hand() -> None:
    masks = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 1]], bool)
    found = forecast(SHAPE, masks, windows=2, tokens=10, memory=None, tflops=1.0)
    assert found["evaluations"] == {"naive": 12, "skip": 10, "plan": 5, "scheduled": 5}
    block = 2 * (2 * SHAPE.block_params * 10 + 2 * 48 * 100)
    head = 2 * 2 * 48 * 300 * 10
    assert found["gflop"]["naive"] == pytest.approx((12 * block + 3 * head) / 1e9, abs=0.1)
    assert found["hours"]["plan"] == pytest.approx((5 * block + 2 * head) / 1e12 / 3600, abs=1e-4)
    assert found["bytes"]["state"] == 2 * 10 * 48 * 4
    assert found["peak_states"] == 2


def test_memory_too_small_and_sizes_that_no_model_has() -> None:
    masks = np.ones((1, 4), bool)
    with pytest.raises(RequestError, match="smallest that works is 3840 bytes"):
        forecast(SHAPE, masks, windows=2, tokens=10, memory=3839, tflops=1.0)
    with pytest.raises(RequestError, match="hidden=0: it must be above 0"):
        ModelShape(4, 0, 1, 1.0, 1, 2).check()
    with pytest.raises(RequestError, match="layers= must be at least 2"):
        ModelShape(1, 8, 8, 1.0, 8, 2).check()
