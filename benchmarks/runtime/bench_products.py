"""Products of a few rows with packed weights, next to a plain read of the same bytes and torch's products; one run.

    python benchmarks/runtime/bench_products.py [--megabytes 128] [--threads 2] [--clock cpu]
    python benchmarks/runtime/bench_products.py --rows 256,480 --matrices 3072x576,576x1536,960x576   # as prompts have

read     torch sums as many bytes as the packed weights have: what memory gives
ours     every format at 1, 4 and 16 rows, 576 and 1,536 inputs (the small real model's), weights larger than the
         caches; with `--matrices` (outputs x inputs) matrices of just these sizes
torch    torch.mm of the same rows with the same weights in fp32

Ends in one JSON line: gigabytes a second (of packed weights), the share of the read, 1e9 operations a second (two for
each weight and row), times faster than torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import CLOCKS, best, set_up
from machine import machine

from layercoop_fast import _C
from layercoop_fast.kernels.quantise import quantise_int4, quantise_int8
from layercoop_fast.llama.native_packing import FORMATS

BITS = {"fp32": 32, "bf16": 16, "int8": 8.5, "int4": 5}
COLUMNS = (576, 1536)
FEW = 1024


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=128, help="of packed weights in each matrix")
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--matrices", help="OUTPUTSxINPUTS, separated by commas, instead of so many megabytes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    now = set_up(arguments.clock, arguments.threads)
    rows = [int(count) for count in arguments.rows.split(",")]
    with torch.inference_mode():
        result = {
            "benchmark": "runtime/products",
            "machine": machine(),
            "isa": _C.isa(),
            "dots": _C.dots(),
            "threads": _C.num_threads(),
            "clock": arguments.clock,
            "megabytes": arguments.megabytes,
            "products": {
                f"{format} {outputs}x{columns}": measure(format, outputs, columns, rows, now, arguments.repeats)
                for format in FORMATS
                for outputs, columns in sizes(arguments.matrices, arguments.megabytes, format)
            },
        }
    sys.stdout.write(json.dumps(result) + "\n")


def sizes(matrices: str | None, megabytes: int, format: str) -> list[tuple[int, int]]:
    """Outputs and inputs of the matrices: as asked, or so many megabytes each."""
    if matrices is not None:
        pairs = (size.split("x") for size in matrices.split(","))
        return [(int(outputs), int(columns)) for outputs, columns in pairs]
    return [(int(megabytes * 1e6 * 8 / (BITS[format] * columns)) // 64 * 64, columns) for columns in COLUMNS]


def measure(
    format: str, outputs: int, columns: int, row_counts: list[int], now: Callable[[], float], repeats: int
) -> dict[str, float | dict[str, float]]:
    """One matrix: its read, and its products."""
    packed = packed_weights(format, outputs, columns)
    as_many = torch.zeros(packed.nbytes // 4)
    read = packed.nbytes / best(now, lambda: as_many.sum(), repeats)
    found: dict[str, float | dict[str, float]] = {"read_gb_s": round(read / 1e9, 1)}
    few = some_weights(max(outputs, FEW), columns)[:outputs]
    for rows in row_counts:
        x = torch.randn(rows, columns)
        out, few_out = torch.empty(rows, outputs), torch.empty(rows, len(few))
        seconds = best(now, lambda x=x, out=out: packed.multiply(x.numpy(), out.numpy()), repeats)
        theirs = best(now, lambda x=x, few_out=few_out: torch.mm(x, few.t(), out=few_out), repeats)
        speed = 2 * rows * outputs * columns / seconds
        found[f"{rows} rows"] = {
            "gb_s": round(packed.nbytes / seconds / 1e9, 1),
            "of_read": round(packed.nbytes / seconds / read, 3),
            "gflop_s": round(speed / 1e9, 1),
            "times_torch": round(speed / (2 * rows * few.numel() / theirs), 2),
        }
    return found


def some_weights(outputs: int, columns: int) -> torch.Tensor:
    """Random rows, the same few over and over: their numbers do not matter."""
    return (0.05 * torch.randn(FEW, columns)).repeat(-(-outputs // FEW), 1)[:outputs].contiguous()


def packed_weights(format: str, outputs: int, columns: int) -> _C.PackedMatrix:
    """The same, quantised once."""
    packed = _C.PackedMatrix(format, outputs, columns)
    few = some_weights(FEW, columns)
    blocks = {"int8": quantise_int8, "int4": quantise_int4}.get(format, lambda few: (few,))(few)
    arrays = [value.numpy().view(np.uint16) if value.dtype == torch.float16 else value.numpy() for value in blocks]
    for first in range(0, outputs, FEW):
        part = [value[: outputs - first] for value in arrays]
        packed.fill(first, part[0], "fp32") if len(part) == 1 else getattr(packed, f"fill_{format}")(first, *part)
    return packed


if __name__ == "__main__":
    main()
