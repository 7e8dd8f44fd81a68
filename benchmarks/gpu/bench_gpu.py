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
import importlib
import os
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

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
_LONGER = 15
"""With --long a part may take so many times as long."""


def main() -> None:
    """Run the benchmark, or one part of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--afresh", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"{unknown[0]} is not one of {', '.join(PARTS)}")
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the interpreter's results lie on the CPU
    if options.part is not None:
        run_part(options)
        return
    import torch

    if not options.tiny and not torch.cuda.is_available():
        sys.stderr.write("bench gpu measures a GPU, and torch sees none here; --tiny runs its code without one\n")
        sys.exit(2)
    if options.afresh:
        options.out.unlink(missing_ok=True)
    from gpu_record import Record, table

    for part in parts:
        run_apart(part, options)
    record = Record.open(options.out, head(tiny=options.tiny))
    sys.stdout.write(table(record.found))
    problems = record.problems
    sys.stderr.write("".join(f"{line}\n" for line in problems))
    sys.exit(1 if problems else 0)


def run_apart(part: str, options: argparse.Namespace) -> None:
    """Run a part as a process of its own, and write how it ended."""
    from gpu_record import Record

    from layercoop_fast.system.processes import tied

    sys.stderr.write(f"{part} ...\n")
    limit = PARTS[part][1] * (_LONGER if options.long or options.tiny else 1)
    command = tied(__file__, "--out", str(options.out), "--part", part)
    command += [f"--{name}" for name in ("tiny", "long") if getattr(options, name)]
    started, problem = time.perf_counter(), None
    try:
        status = subprocess.run(command, timeout=limit, check=False).returncode
        if status != 0:
            problem = f"its process ended with status {status}; rows that it had measured are kept"
    except subprocess.TimeoutExpired:
        problem = f"it took more than its {limit} seconds; rows that it had measured are kept"
    record = Record.open(options.out, head(tiny=options.tiny))
    record.end(part, time.perf_counter() - started, problem)


def run_part(options: argparse.Namespace) -> None:
    """Measure the rows of a part that are missing; one that fails leaves a line in its place."""
    from chips import Bench
    from gpu_record import Record

    from layercoop_fast.kernels.memory import through_interpreter

    record = Record.open(options.out, head(tiny=options.tiny))
    bench = Bench.here(tiny=options.tiny, long=options.long)
    with through_interpreter() if options.tiny else nullcontext():
        for row, measure in importlib.import_module(PARTS[options.part][0]).rows(bench):
            if not record.missing(options.part, row):
                continue
            sys.stderr.write(f"  {row} ...\n")
            try:
                figures: dict[str, Any] = measure()
            except Exception as problem:  # one row less is no reason to lose the others
                traceback.print_exc()
                figures = {"failed": f"{type(problem).__name__}: {problem}"[:300]}
            record.add(options.part, row, figures)


def head(*, tiny: bool) -> dict[str, Any]:
    """What a file begins with."""
    import torch
    import triton
    from machine import machine

    return {
        "benchmark": "gpu",
        "gpu": "none (--tiny)" if tiny else torch.cuda.get_device_name(),
        "machine": machine(),
        "triton": triton.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "tiny": tiny,
    }


if __name__ == "__main__":
    main()
