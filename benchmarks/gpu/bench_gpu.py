"""What a GPU is for here, measured on the one that is there: `layercoop-fast bench gpu`, or `make bench-gpu`.

    python benchmarks/gpu/bench_gpu.py [--out bench-gpu.json] [--only smoke,engine,...] [--tiny] [--long] [--afresh]

smoke       every kernel against its oracle, graphs, and what a mask is worth on the GPU and on the CPU
engine      masks of an 8B llama on 10 × 128 and 8 × 2048 tokens: ours, its products alone, skipping, the published way
decode      tokens a second of the same model: ours (16 bits, 8 and 4 bits), transformers, its static cache compiled
kernels     every Triton kernel against its oracle, torch.compile, and liger-kernel, SDPA or FlashInfer where they have
            the same; the recurrence of Qwen3-Next by transformers and by flash-linear-attention
surrogate   values of masks, what each player adds, all 2^30 and 2^32 masks: ours, torch, torch.compile
1b          engine and decoding in the shape of a llama of 1B
vllm        tokens a second of vLLM on the 8B llama, where it is installed

Models are random: no network is needed. Each part is a process of its own with a limit of seconds, all but vllm's two
minutes together within nine. A JSON file, and next to it a table (.md) ready for docs/performance.md, are written after
each row; what fails is said in both, and the rest goes on. Run again, the benchmark measures what is missing
(--afresh: everything).
`--long` adds 2^40 masks and the same by C++. The exit status is 1 where something failed. Without a GPU it is 2, but
for --tiny, which runs the same code at sizes that mean nothing, kernels in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from parts import Suite

# Of each part the module whose `rows` it runs, and its limit in seconds.
PARTS = {
    "smoke": ("gpu_smoke", 60),
    "engine": ("gpu_engine", 130),
    "decode": ("gpu_decode", 100),
    "kernels": ("gpu_kernels", 110),
    "surrogate": ("gpu_networks", 60),
    "1b": ("gpu_small", 50),
    "vllm": ("gpu_vllm", 120),
}


def main() -> None:
    """Run the benchmark, or one part of it in this process."""
    suite = Suite(Path(__file__), PARTS, head, bench, interpreted)
    options = suite.parser(__doc__, Path("bench-gpu.json")).parse_args()
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the interpreter's results lie on the CPU
    import torch

    if not options.tiny and not torch.cuda.is_available():
        sys.stderr.write("bench gpu measures a GPU, and torch sees none here; --tiny runs its code without one\n")
        sys.exit(2)
    sys.exit(suite.run(options))


def bench(options: argparse.Namespace) -> Any:
    """What the parts need to know."""
    from chips import Bench

    return Bench.here(tiny=options.tiny, long=options.long)


def interpreted(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Triton's interpreter for --tiny."""
    from layercoop_fast.kernels.memory import through_interpreter

    return through_interpreter() if options.tiny else nullcontext()


def head(options: argparse.Namespace) -> dict[str, Any]:
    """What a file begins with."""
    import torch
    import triton
    from machine import machine

    gpu = "none (--tiny)" if options.tiny else torch.cuda.get_device_name()
    return {
        "benchmark": "gpu",
        "title": f"{gpu}, torch {torch.__version__}, triton {triton.__version__}",
        "machine": machine(),
        "cuda": torch.version.cuda or torch.version.hip,
        "tiny": options.tiny,
    }


if __name__ == "__main__":
    main()
