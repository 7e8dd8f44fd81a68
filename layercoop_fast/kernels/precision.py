"""Whether this processor multiplies as fast in a dtype as in fp32: many have no instructions for bf16 or fp16."""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch

# A product up to this many times as slow may pay off, since half the bytes are read.
_SLOW = 3.0

_SECONDS = 0.1  # of measuring, in each dtype
_FEWEST_TRIES, _MOST_TRIES = 3, 100


@cache
def slowness(dtype: torch.dtype) -> float:
    """Time of a matrix product in a dtype, over its time in fp32 on this processor; measured once, on one thread.

    With several threads, those on a busy processor would delay the others many times as long as they compute.
    """
    threads, seconds = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        for tried in (torch.float32, dtype):
            rows, weight = torch.ones(128, 256, dtype=tried), torch.ones(256, 256, dtype=tried)
            times: list[float] = []
            while len(times) < _FEWEST_TRIES or (sum(times) < _SECONDS and len(times) < _MOST_TRIES):
                started = time.perf_counter()
                torch.nn.functional.linear(rows, weight)
                times.append(time.perf_counter() - started)
            seconds[tried] = min(times)
    finally:
        torch.set_num_threads(threads)
    return seconds[dtype] / seconds[torch.float32]


def is_slow(dtype: torch.dtype) -> bool:
    """Whether products in a dtype are so much slower on this processor that fp32 is the better choice."""
    return dtype in (torch.bfloat16, torch.float16) and slowness(dtype) > _SLOW


def warn_if_slow(dtype: torch.dtype) -> None:
    """Warn where the dtype of a checkpoint, used because no other was requested, is slow on this processor."""
    if is_slow(dtype):
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"this processor multiplies {slowness(dtype):.0f} times slower in {name}, the checkpoint's dtype, than in "
            "float32: set dtype= to float32",
            stacklevel=3,
        )
