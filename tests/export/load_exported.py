"""Run by `test_checkpoint.py` in a fresh process: load every exported folder with plain transformers and report.

    python load_exported.py FOLDER...

Beside each folder lies FOLDER.safetensors with the logits expected. The last line printed is JSON: per folder, whether
the logits are the same bit for bit, the tokens generated with and without a cache, and whether head and embedding are
one tensor. Nothing of layercoop_fast is imported: what comes out must do without it.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def report(folder: str) -> dict[str, object]:
    expected = load_file(f"{folder}.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = expected["ids"][:1]
    with torch.inference_mode():
        logits = model(expected["ids"], use_cache=False).logits
        tokens = [
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False, use_cache=use_cache
            )[0].tolist()
            for use_cache in (True, False)
        ]
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return {
        "same_logits": torch.equal(logits, expected["logits"]),
        "cached": tokens[0],
        "uncached": tokens[1],
        "tied": head.data_ptr() == embedding.data_ptr(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {folder: report(folder) for folder in sys.argv[1:]}
    assert not any(name.split(".")[0] == "layercoop_fast" for name in sys.modules)
    print(json.dumps(results))
