"""From how many rows on the bits of a row of a product do not depend on how many rows there are; no timing.

    python benchmarks/kernels/bench_rows.py [--threads 2] [--matrices 960x576,576x1536,49152x576]

For each dtype and matrix (outputs x inputs) a product of 4,096 rows is compared bit for bit with products of its first
rows. Ends in one JSON line: the least count from which on all agree, of those tried.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

COUNTS = (1, 2, 4, 7, 8, 16, 32, 64, 128, 256, 512, 640, 768, 896, 1024, 2048)
MANY = 4096


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", default="960x576,3072x576,576x576,576x1536,2048x5632,5632x2048")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for size in arguments.matrices.split(","):
                outputs, inputs = map(int, size.split("x"))
                found[f"{str(dtype).removeprefix('torch.')} {size}"] = alike_from(outputs, inputs, dtype)
    result = {"benchmark": "kernels/rows", "machine": machine(), "threads": arguments.threads, "alike_from": found}
    sys.stdout.write(json.dumps(result) + "\n")


def alike_from(outputs: int, inputs: int, dtype: torch.dtype) -> int | None:
    """The least of COUNTS from which on every count gives a row the bits it has among MANY; None: none does."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(MANY, inputs, generator=generator).to(dtype)
    right = torch.randn(outputs, inputs, generator=generator).to(dtype).t()
    many = left @ right
    least = None
    for count in reversed(COUNTS):
        if not torch.equal(left[:count] @ right, many[:count]):
            break
        least = count
    return least


if __name__ == "__main__":
    main()
