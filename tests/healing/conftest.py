from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from layercoop_fast import export_checkpoint

KEPT = [0, 1, 3, 4]


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of six blocks."""
    return save_tiny(tmp_path_factory.mktemp("healing") / "full", n_layers=6)


@pytest.fixture(scope="session")
def cut(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without two of its blocks."""
    folder = tmp_path_factory.mktemp("healing") / "cut"
    model = AutoModelForCausalLM.from_pretrained(full)
    export_checkpoint(model, KEPT, folder, blocks_path="model.layers", tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture(scope="session")
def narrow(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pruned model in bf16."""
    folder = tmp_path_factory.mktemp("healing") / "narrow"
    AutoModelForCausalLM.from_pretrained(cut, dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _alone(one_thread: None) -> None:
    """On a busy machine threads of such small products mostly wait for each other."""
