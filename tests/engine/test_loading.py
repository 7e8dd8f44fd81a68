"""Opening checkpoints leaves the process as it was, whoever opens them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny
from transformers import PreTrainedModel

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.errors import RequestError


def test_models_opened_in_several_threads_at_once_leave_no_method_replaced(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "llama", 6, tie_word_embeddings=True))
    before = PreTrainedModel.tie_weights, PreTrainedModel.init_weights
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_checkpoint(folder).model, range(12)))
    assert (PreTrainedModel.tie_weights, PreTrainedModel.init_weights) == before
    for model in opened:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_checkpoint_without_halves_of_layers_is_refused_with_the_reason(tmp_path: Path) -> None:
    """transformers keeps `skip` in the config, and builds and fills the halves that the files do not hold."""
    folder = save_tiny(tmp_path / "model", "llama", 3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "per_layer_config": {"1": {"skip": ["mlp"]}}}))
    assert open_checkpoint(str(folder)).model.config.per_layer_config[1].skip == ["mlp"]  # whole, it is read
    weights = load_file(folder / "model.safetensors")
    left = {name: one for name, one in weights.items() if "layers.1.mlp" not in name}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"leaves out parts of layers \(per_layer_config with skip\)"):
        open_checkpoint(str(folder))
