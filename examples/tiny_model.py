"""A random llama of six small layers, made on the spot, so that every example runs in seconds and without a download.

python examples/tiny_model.py FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def model_or_tiny(model: str | None) -> str:
    """Return the checkpoint that was asked for, or a folder with a tiny one."""
    return model or save_tiny_model(Path(tempfile.mkdtemp(prefix="tiny-model-")))


def save_tiny_model(folder: Path, layers: int = 6) -> str:
    """Write a random llama with a byte-level tokenizer, as `save_pretrained` does; the same weights each time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.15,  # wide: each layer changes the answers visibly
                bos_token_id=0,
                eos_token_id=1,
            )
        )
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(["<s>", "</s>", *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    print(save_tiny_model(Path(sys.argv[1])))
