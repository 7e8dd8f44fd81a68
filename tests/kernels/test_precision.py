"""What is said of a dtype that the processor multiplies slowly in."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny, tiny_model

from layercoop_fast import ModelGame
from layercoop_fast.kernels import precision
from layercoop_fast.kernels.precision import is_slow, slowness, warn_if_slow

SMALL = {"windows": 2, "tokens": 16}


@pytest.fixture
def half(tmp_path: Path) -> Path:
    path = save_tiny(tmp_path / "half", n_layers=2)
    tiny_model("llama", 2).bfloat16().save_pretrained(path)
    return path


def test_a_slow_dtype_of_a_checkpoint_is_said(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowness", lambda dtype: 412.3)
    with pytest.warns(UserWarning, match="multiplies 412 times slower in bfloat16, the checkpoint's dtype"):
        ModelGame.from_pretrained(half, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ModelGame.from_pretrained(half, dtype="bfloat16", **SMALL).masked.skeleton.dtype == torch.bfloat16
        warn_if_slow(torch.float32)


def test_a_quick_dtype_is_not_mentioned(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowness", lambda dtype: 1.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelGame.from_pretrained(half, **SMALL)


@pytest.mark.parametrize(("times", "slow"), [(2.9, False), (3.1, True)])
def test_slowness_is_the_time_over_that_in_fp32(monkeypatch: pytest.MonkeyPatch, times: float, slow: bool) -> None:
    now, threads = 0.0, torch.get_num_threads()

    def product(rows: torch.Tensor, weights: torch.Tensor) -> None:
        nonlocal now
        now += times if rows.dtype == weights.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    slowness.cache_clear()
    try:
        assert slowness(torch.bfloat16) == pytest.approx(times)
        assert torch.get_num_threads() == threads
        assert is_slow(torch.bfloat16) == slow
        assert not is_slow(torch.float64)  # asked for, not met with in a checkpoint
    finally:
        slowness.cache_clear()
