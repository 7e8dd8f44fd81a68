"""What a mask's weights take is what a model holds that was opened with that mask alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.runtime.model import LayerSkipModel

MASK = np.array([3, 1, 2, 0], dtype=np.uint8)
BITS = np.stack([MASK & 1, MASK & 2], axis=1).reshape(-1) > 0  # bool [2L]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_bytes_of_packed_weights(tmp_path: Path, dtype: str) -> None:
    """The embedding is large, and int8 where blocks are int4: a share of the parameters is not one of the bytes."""
    folder = save_tiny(tmp_path / "tiny", n_layers=4, vocab_size=3000)
    model = LayerSkipModel.from_pretrained(folder, dtype=dtype)
    size = model.size(model.mask(BITS))
    assert size.n_bytes == LayerSkipModel.from_pretrained(folder, dtype=dtype, mask=BITS).executor.weight_bytes
    assert model.size(model.mask()).n_bytes == model.executor.weight_bytes
    assert size.parameters < model.size(model.mask()).parameters


def test_bytes_of_transformers_own_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", n_layers=4)
    model = LayerSkipModel.from_pretrained(folder, executor="transformers")
    mask = np.array([True, False, True, False])
    held = LayerSkipModel.from_pretrained(folder, executor="transformers", mask=mask)
    assert model.size(model.mask(mask)).n_bytes == held.executor.weight_bytes < model.executor.weight_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checkpoints_file_is_not_held_once_it_is_packed(tmp_path: Path, dtype: str) -> None:
    """A tensor that is left, a norm's say, would keep the whole file mapped."""
    maps = Path("/proc/self/maps")
    folder = save_tiny(tmp_path / "tiny", n_layers=2, dtype=dtype)
    model = LayerSkipModel.from_pretrained(folder)
    if maps.exists():  # as Linux tells it
        assert str(folder) not in maps.read_text()
    assert model.executor.name.startswith("native")
    assert len(model.generate([5, 6], max_new_tokens=2, ignore_eos=True).tokens) == 2
