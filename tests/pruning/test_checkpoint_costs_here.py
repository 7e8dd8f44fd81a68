"""The figures of one model, whose sizes are known, measured in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_tiny

from layercoop_fast.pruning import checkpoint_costs as cost

LAYERS = 2


def test_tied_weights_count_once_and_the_cache_by_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(cost, "_median_seconds", lambda call: 1.0)
    folder = save_tiny(tmp_path / "tied", n_layers=LAYERS, tie_word_embeddings=True)
    found = cost.measure_here(str(folder), "auto", "cpu", False)
    block = 2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 80 + 2 * 48
    assert found.params == LAYERS * block + 300 * 48 + 48
    assert found.weight_bytes == 4 * found.params
    assert found.kv_bytes_per_token == 2 * 1 * 16 * LAYERS * 4


def test_the_prompt_is_no_part_of_the_speed_of_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([2.0, 6.0])
    monkeypatch.setattr(cost, "_median_seconds", lambda call: next(seconds))
    folder = save_tiny(tmp_path / "model", n_layers=LAYERS)
    found = cost.measure_here(str(folder), "auto", "cpu", False)
    assert (found.prefill_tok_s, found.decode_tok_s) == (cost.PROMPT_TOKENS / 2, cost.DECODE_TOKENS / 4)
