"""Opening checkpoints leaves the process as it was, whoever opens them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tiny_models import save_tiny
from transformers import PreTrainedModel

from layercoop_fast.engine.loading import open_checkpoint


def test_models_opened_in_several_threads_at_once_leave_no_method_replaced(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "llama", 6, tie_word_embeddings=True))
    before = PreTrainedModel.tie_weights, PreTrainedModel.init_weights
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_checkpoint(folder).model, range(12)))
    assert (PreTrainedModel.tie_weights, PreTrainedModel.init_weights) == before
    for model in opened:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
