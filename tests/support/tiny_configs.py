"""The configs of `tiny_models.py`, one tiny shape a family: `CORE` is what most tests go over, `MORE` what else is."""

from __future__ import annotations

from typing import Any

_ATTENTION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 3,  # odd on purpose: nothing may assume a power of two
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_GEMMA: dict[str, Any] = {**_ATTENTION, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_SPARSE: dict[str, Any] = {**_ATTENTION, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_NO_GROUPS: dict[str, Any] = {name: value for name, value in _ATTENTION.items() if name != "num_key_value_heads"}
_MAMBA: dict[str, Any] = {"hidden_size": 32, "state_size": 8, "time_step_rank": 4}
# The recurrent part of the hybrids that have Mamba-2 in them: heads times their width is expand times hidden size.
_MAMBA2_PART: dict[str, Any] = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
_LINEAR_ATTENTION: dict[str, Any] = {
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
# Attention after every second block, so that two blocks are of both kinds.
_EVERY_SECOND: dict[str, Any] = {"full_attention_interval": 2}

# family -> (model_type of transformers, arguments of its config)
CORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _ATTENTION),
    "mistral": ("mistral", {**_ATTENTION, "head_dim": 16, "sliding_window": 8}),
    "qwen2": ("qwen2", {**_ATTENTION, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "qwen3": ("qwen3", {**_ATTENTION, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", {**_GEMMA, "sliding_window_pattern": 3}),
    "phi3": ("phi3", {**_ATTENTION, "original_max_position_embeddings": 256}),
    "gpt2": ("gpt2", {"n_embd": 48, "n_head": 3, "n_positions": 256}),
    "opt": ("opt", {"hidden_size": 48, "ffn_dim": 80, "num_attention_heads": 3, "max_position_embeddings": 256}),
    "gpt_neox": ("gpt_neox", _NO_GROUPS),
    "mamba": ("mamba", _MAMBA),
    "qwen2_moe": ("qwen2_moe", {**_SPARSE, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_ATTENTION,
            "num_key_value_heads": 3,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
        },
    ),
    "smollm3": ("smollm3", {**_ATTENTION, "no_rope_layer_interval": 3}),
    "jamba": (
        "jamba",
        {
            **_ATTENTION,
            "num_experts": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
        },
    ),
}

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {**_ATTENTION, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {**_SPARSE, "head_dim": 16}),
    "gptj": ("gptj", {"n_embd": 48, "n_head": 3, "n_positions": 256, "rotary_dim": 8}),
    "falcon": ("falcon", {"hidden_size": 48, "num_attention_heads": 3, "ffn_hidden_size": 80}),
    "bloom": ("bloom", {"hidden_size": 48, "n_head": 3}),
    "olmo2": ("olmo2", _ATTENTION),
    "granite": (
        "granite",
        {
            **_ATTENTION,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.2,
        },
    ),
    "mamba2": (
        "mamba2",
        {"hidden_size": 32, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
    ),
    "falcon_mamba": ("falcon_mamba", {**_MAMBA, "intermediate_size": 64}),
    "rwkv": ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64, "context_length": 256}),
    "bamba": ("bamba", {**_ATTENTION, **_MAMBA2_PART, "attn_layer_indices": [1, 4]}),
    "falcon_h1": ("falcon_h1", {**_ATTENTION, **_MAMBA2_PART, "mamba_d_ssm": 96}),
    "qwen3_next": (
        "qwen3_next",
        {**_SPARSE, **_LINEAR_ATTENTION, **_EVERY_SECOND, "shared_expert_intermediate_size": 40},
    ),
    "qwen3_5": ("qwen3_5_text", {**_ATTENTION, **_LINEAR_ATTENTION, **_EVERY_SECOND}),
    "gpt_oss": (
        "gpt_oss",
        {**_ATTENTION, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "lfm2": ("lfm2", {**_ATTENTION, "full_attn_idxs": [1, 4], "block_auto_adjust_ff_dim": False}),
    "gemma4": (
        "gemma4_text",
        {
            **_ATTENTION,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "global_head_dim": 24,
            "num_global_key_value_heads": 3,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
        },
    ),
}
