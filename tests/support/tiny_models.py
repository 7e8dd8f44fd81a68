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
from tiny_configs import CORE, MORE
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


def tiny_model(family: str, n_layers: int = 6, *, seed: int = 0, **config_arguments: Any) -> PreTrainedModel:
    """Build the tiny model of `family`; `config_arguments` override its config's own (see `FAMILIES` for the names)."""
    model_type, arguments = {**CORE, **MORE}[family]
    arguments = {**_COMMON, **arguments, "num_hidden_layers": n_layers, **config_arguments}
    config = AutoConfig.for_model(model_type, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _make_every_block_matter(model)
    return model.eval()


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {family: partial(tiny_model, family) for family in CORE}


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
