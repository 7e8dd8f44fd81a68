"""What is said of a dtype that the processor multiplies slowly in."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny, tiny_model

from layercoop_fast import ModelGame
from layercoop_fast.engine import precision
from layercoop_fast.engine.precision import slowness, warn_if_slow

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
        assert ModelGame.from_pretrained(half, dtype="bfloat16", **SMALL).skeleton.dtype == torch.bfloat16
        warn_if_slow(torch.float32)


def test_a_quick_dtype_is_not_mentioned(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowness", lambda dtype: 1.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelGame.from_pretrained(half, **SMALL)


def test_slowness_is_a_ratio_to_fp32() -> None:
    assert 0.2 < slowness(torch.float32) < 5
    assert slowness(torch.bfloat16) > 0
