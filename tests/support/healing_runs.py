"""What tests of healing share: options of a short run, weights of a folder, and how far two models are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

OPTIONS: dict[str, Any] = {"text": ["self"], "window": 32, "batch": 8, "tokens": 4096, "watch_every": 2048}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def divergence(teacher: Path, student: Path) -> float:
    """Mean KL over some windows, by transformers alone."""
    ids = torch.randint(3, 259, (16, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        p, q = (AutoModelForCausalLM.from_pretrained(one)(ids).logits.log_softmax(-1) for one in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())
