"""What a checkpoint costs, on models whose sizes are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, save_tiny

from layercoop_fast.errors import RunError
from layercoop_fast.pruning.checkpoint_costs import _cache_bytes, measure_costs


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", 2 * 1 * 16 * 4 * 4),  # keys and values × heads × head size × layers × bytes
        ("gpt2", 2 * 3 * 16 * 4 * 4),
        ("mamba", 0),  # a recurrent state does not grow
    ],
)
def test_cache_growth_a_token(family: str, expected: int) -> None:
    model = FAMILIES[family](n_layers=4)
    ids = torch.arange(20).view(1, -1)
    with torch.inference_mode():
        assert _cache_bytes(model, ids[:, :11]) - _cache_bytes(model, ids[:, :10]) == expected


@pytest.mark.slow
def test_each_checkpoint_is_measured(tmp_path: Path) -> None:
    paths = [save_tiny(tmp_path / str(layers), n_layers=layers) for layers in (2, 5)]
    small, large = measure_costs(paths)
    assert large.kv_bytes_per_token == small.kv_bytes_per_token // 2 * 5
    assert large.params - small.params == 3 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 80 + 2 * 48)
    assert small.weight_bytes == 4 * small.params
    for cost in (small, large):
        assert cost.peak_memory_bytes > 0
        assert cost.prefill_tok_s > 0
        assert cost.decode_tok_s > 0


@pytest.mark.slow
def test_a_failure_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"could not be measured: .*does not exist"):
        measure_costs([tmp_path / "nowhere"])
