"""`make demo`: prune 3 of the small real model's 30 blocks, by a published rule and by our own, and show what came out.

    python benchmarks/demo.py [--out FOLDER] [--remove 3] [--svg FILE]

Calibrated on one half of the text the standard library ships, checked on the other half. The published rule is taken as
it is; ours is followed by a repair. Prints a table (blocks removed, perplexity on both texts, seconds, size, speed),
one sentence by each model, and the folder that was written, with a report in it.

The model comes in bf16. On processors without instructions for it torch's products in bf16 take many times as long as
in fp32, so there the demo runs in fp32, and says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from small_model import small_model

from layercoop_fast.cli.pruned import show_pruned
from layercoop_fast.engine.loading import quiet_transformers
from layercoop_fast.kernels.precision import is_slow
from layercoop_fast.progress import Bars
from layercoop_fast.pruning.prune import prune

WINDOWS = 6  # of 128 tokens: keeps the search under a minute and a half on two slow cores
# A published rule as it is, and ours with a repair: fitted to two kinds of text instead of five, and to fewer tokens,
# for the same reason.
METHODS: dict[str, dict[str, Any]] = {
    "shortgpt": {"repair": False},
    "coop": {"repair_text": ("builtin", "builtin-code"), "repair_tokens": 4_096},
}
PROMPT = "The best way to learn a new language is"


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--remove", type=int, default=3)
    parser.add_argument("--svg", type=Path, help="also draw what is printed as a picture")
    arguments = parser.parse_args()
    console = Console(record=arguments.svg is not None, width=132 if arguments.svg else None)
    model = small_model()
    dtype = "float32" if is_slow(torch.bfloat16) else "auto"
    if dtype != "auto":
        console.print("This processor is slow in bf16: running in fp32.", highlight=False)
    results = []
    for method, how in METHODS.items():
        with Bars() as bars:
            results.append(
                prune(
                    str(model),
                    arguments.out / method,
                    calibration="builtin",
                    heldout="builtin-heldout",
                    remove=arguments.remove,
                    windows=WINDOWS,
                    dtype=dtype,
                    method=method,
                    samples=1,
                    **how,
                    force=True,
                    on_progress=bars.update,
                )
            )
    show_pruned(results, console)
    for name, folder in [("full", model), *((result.choice.method, result.out) for result in results)]:
        console.print(f"[bold]{name}[/bold]: {sentence(folder, dtype)}", highlight=False, soft_wrap=True)
    console.print(f"The pruned checkpoints are in {arguments.out.resolve()}", highlight=False, soft_wrap=True)
    if arguments.svg is not None:
        console.save_svg(str(arguments.svg), title="make demo")


def sentence(folder: Path, dtype: str) -> str:
    """What a model makes of the prompt, greedily, up to the first full stop."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    text: str = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return " ".join(text.split(".")[0].split()) + "."


if __name__ == "__main__":
    main()
