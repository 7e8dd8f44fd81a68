"""Tiny random causal language models, one a family, and a byte tokenizer: what the tests run instead of downloads.

Every model is deterministic in its arguments, fp32, on the CPU and in eval mode, and leaves torch's global random state
alone. Its weights are drawn wide enough that every block changes the logits visibly: a test that removes the wrong
block, or none, cannot pass by accident.

    model = FAMILIES["gemma3"](n_layers=8, seed=1)
    path = save_tiny(tmp_path / "model", family="llama", n_layers=6)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

BOS, EOS, PAD = 0, 1, 2
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>"]
VOCAB_SIZE = 300  # 256 bytes and the special tokens, and a few ids that no text uses
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_COMMON: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
_ATTENTION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 3,  # odd on purpose: nothing may assume a power of two
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_GEMMA: dict[str, Any] = {**_ATTENTION, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_SPARSE: dict[str, Any] = {**_ATTENTION, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# family -> (model_type of transformers, arguments of its config)
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _ATTENTION),
    "mistral": ("mistral", {**_ATTENTION, "head_dim": 16, "sliding_window": 8}),
    "qwen2": ("qwen2", {**_ATTENTION, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "qwen3": ("qwen3", {**_ATTENTION, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", {**_GEMMA, "sliding_window_pattern": 3}),
    "phi3": ("phi3", {**_ATTENTION, "original_max_position_embeddings": 256}),
    "gpt2": ("gpt2", {"n_embd": 48, "n_head": 3, "n_positions": 256}),
    "opt": ("opt", {"hidden_size": 48, "ffn_dim": 80, "num_attention_heads": 3, "max_position_embeddings": 256}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in _ATTENTION.items() if k != "num_key_value_heads"}),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 8, "time_step_rank": 4}),
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


def tiny_model(family: str, n_layers: int = 6, *, seed: int = 0, **config_arguments: Any) -> PreTrainedModel:
    """Build the tiny model of `family`; `config_arguments` override its config's own (see `FAMILIES` for the names)."""
    model_type, arguments = _CONFIGS[family]
    arguments = {**_COMMON, **arguments, "num_hidden_layers": n_layers, **config_arguments}
    config = AutoConfig.for_model(model_type, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _make_every_block_matter(model)
    return model.eval()


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {family: partial(tiny_model, family) for family in _CONFIGS}


@torch.no_grad()
def _make_every_block_matter(model: PreTrainedModel) -> None:
    """Redraw the weights in place: wide projections, norms near what they start at, noise on every bias."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            own.pop("weight").normal_(std=0.15)
        noisy = isinstance(module, (nn.Linear, Conv1D)) or "Norm" in type(module).__name__
        for parameter in own.values():
            if parameter.dim() >= 3 and "Expert" in type(module).__name__:  # stacked projections of all experts
                parameter.normal_(std=0.15)
            elif noisy:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: any text is its UTF-8 bytes, one id each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def save_tiny(path: Path, family: str = "llama", n_layers: int = 6, **config_arguments: Any) -> Path:
    """Save model, generation config and tokenizer into the folder `path`, as a download would lie there; return it."""
    model = tiny_model(family, n_layers, **config_arguments)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return Path(path)
