"""What the machine gives: memory read by a loop of loads, and products by torch."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from cpu_models import Bench
from parts import Rows
from read_memory import read_speed

from layercoop_fast import _C


def rows(bench: Bench) -> Rows:
    """The loop's, and products of each dtype."""
    torch.set_num_threads(bench.threads)
    yield "memory", partial(_memory, bench)
    for dtype in (torch.float32, torch.bfloat16):
        yield f"products, {str(dtype).removeprefix('torch.')}", partial(_products, bench, dtype)


def _memory(bench: Bench) -> dict[str, Any]:
    return {"GB/s": read_speed(bench.threads, 1 if bench.tiny else 20) / 1e9, "level": f"{_C.isa()} ({_C.dots()})"}


def _products(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    rows, size = (8, 64) if bench.tiny else (512, 2048)
    x, w = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(3 if bench.tiny else 30):
            started = time.perf_counter()
            torch.nn.functional.linear(x, w)
            seconds.append(time.perf_counter() - started)
    return {"GFLOP/s": 2 * rows * size * size / min(seconds) / 1e9}
