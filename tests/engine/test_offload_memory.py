"""A model larger than the memory of a process is played to the same worths within two blocks and little else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.export.streaming import save_weights
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.texts.calibration import Calibration

HIDDEN = 1024
# Beside two blocks. What may be allocated counts stacks of threads, 8 MiB each, that are hardly touched; so both sides
# compute with one thread, however many processors there are.
BESIDE_ALLOCATED, BESIDE_USED = 64 * 2**20, 32 * 2**20


def write_llama(folder: Path, layers: int) -> tuple[int, int]:
    """A llama whose blocks all have the same random weights: (bytes of its file, bytes of a block)."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=11 * HIDDEN // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=300,
        max_position_embeddings=64,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}

    def value(name: str) -> torch.Tensor:
        kind = name.rpartition("layers.")[2].partition(".")[2] or name
        if kind not in made:
            shape = tensors[name].shape
            random = torch.empty(shape).normal_(std=0.03, generator=generator)
            made[kind] = (random if len(shape) > 1 else 1 + random).bfloat16()
        return made[kind]

    save_weights(folder, tensors, value, "5GB", 0)
    block = sum(t.nbytes for name, t in tensors.items() if ".layers.0." in name)
    return (folder / "model.safetensors").stat().st_size, block


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and counts memory as Linux does")
@pytest.mark.parametrize("layers", [6, pytest.param(32, marks=pytest.mark.slow)])
def test_a_model_larger_than_the_limit(tmp_path: Path, layers: int, one_thread: None) -> None:
    """With 6 layers its file is larger than what may be allocated beyond import, with 32 than the whole limit."""
    folder = tmp_path / "model"
    size, block = write_llama(folder, layers)
    room = 2 * block + BESIDE_ALLOCATED
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "offload_child.py"), str(folder), str(room)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LAYERCOOP_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert size > (room if layers < 32 else found["limit"])
    assert found["peak"] <= 2 * block + BESIDE_USED
    assert found["read"] > 3 * size - 4 * block  # found, tried, played: at least that often it was gone through
    ids = torch.arange(3, 35).view(2, 16)
    game = ModelGame(open_checkpoint(str(folder)), Calibration(ids, "test"), memory=2**20)
    assert found["path"] == game.masked.units.path == "fast"
    expected = game.evaluate(np.random.default_rng(0).random((20, layers)) < 0.8)
    assert found["nll"] == expected.nll.tolist()
