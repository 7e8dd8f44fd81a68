"""Random llamas for the benchmarks: nothing is fetched, and speed does not depend on what weights say."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, dict[str, int]] = {
    "8b": {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "1b": {
        "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "smoke": {
        "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 3000,
    },
    "tiny": {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 65,
    },
}  # fmt: skip


def config_of(size: str, n_layers: int | None = None) -> LlamaConfig:
    """The configuration of a size, perhaps with fewer blocks."""
    config = LlamaConfig(**SIZES[size], max_position_embeddings=8192, tie_word_embeddings=size == "1b")
    config.num_hidden_layers = min(n_layers or config.num_hidden_layers, config.num_hidden_layers)
    config._attn_implementation = "sdpa"
    return config


def random_llama(size: str, device: torch.device, dtype: torch.dtype, n_layers: int | None = None) -> LlamaForCausalLM:
    """A llama of a size, made where it will run."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config_of(size, n_layers))
    finally:
        torch.set_default_dtype(before)
    return model.eval()
