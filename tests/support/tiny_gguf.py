"""Tiny GGUF files, written by the `gguf` package: what the tests of cutting read, and read back, independently of it.

model, path = tiny_llama_gguf(tmp_path / "model.gguf", n_layers=6)
path = bare_gguf(tmp_path / "model.gguf", "gemma3", 12, {"gemma3.attention.sliding_window": 512})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_models import FAMILIES, tiny_model
from transformers import PreTrainedModel

WORDS = ["<s>", "</s>", *(f"wörd {number}" for number in range(298))]

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """The name llama.cpp has for a parameter of transformers' Llama."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def as_gguf(name: str, weight: np.ndarray[Any, Any], heads: dict[str, int]) -> np.ndarray[Any, Any]:
    """A weight with the rows of queries and keys in llama.cpp's order: the two halves of a head interleaved."""
    count = heads.get(name.split(".")[-2])
    if count is None:
        return weight
    halves = weight.reshape(count, 2, len(weight) // count // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tiny_llama_gguf(path: Path, n_layers: int = 6, alignment: int = 32) -> tuple[PreTrainedModel, Path]:
    """Write a tiny Llama as a GGUF file: some weights in blocks of 8 bits, the others in float32. Returns both."""
    model = FAMILIES["llama"](n_layers=n_layers, hidden_size=96, intermediate_size=64)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_name("tiny")
    writer.add_block_count(n_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(96)
    writer.add_feed_forward_length(64)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * 298])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.state_dict().items():
        weight = as_gguf(name, parameter.numpy(), heads)
        if "mlp" in name:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), weight)
    return model, _written(writer, path)


def tiny_lfm2_gguf(path: Path, attention: Sequence[int], n_layers: int = 6) -> tuple[PreTrainedModel, Path]:
    """Write a tiny LFM2, a hybrid whose blocks in `attention` have attention and the others a short convolution."""
    model = tiny_model(
        "lfm2", n_layers, full_attn_idxs=list(attention), block_auto_adjust_ff_dim=False, tie_word_embeddings=True
    )
    config = model.config
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_name("tiny")
    writer.add_block_count(n_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    heads = config.num_key_value_heads
    writer.add_head_count_kv([heads if block in attention else 0 for block in range(n_layers)])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * 298])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LFM2, n_layers)
    for name, parameter in model.state_dict().items():
        if name != "lm_head.weight":  # tied to the embedding
            weight = parameter.numpy().squeeze(1) if ".conv.conv." in name else parameter.numpy()
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight)
    return model, _written(writer, path)


def bare_gguf(
    path: Path, arch: str, n_blocks: int, values: Mapping[str, Any] | None = None, tensor: str = "attn_norm"
) -> Path:
    """Write a file of an architecture with these key-values and one weight a block, of one number: the block's own."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(n_blocks)
    for key, value in (values or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for block in range(n_blocks):
        writer.add_tensor(f"blk.{block}.{tensor}.weight", np.full(1, block, np.float32))
    return _written(writer, path)


def _written(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
