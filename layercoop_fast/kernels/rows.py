"""How many rows a matrix product needs so that a row's result does not depend on the rows beside it."""

from __future__ import annotations

from functools import cache

import torch

# torch's CPU kernels take another path for a handful of rows (rows agree bitwise from 7 or 16 rows on, not below);
# whoever promises that a row is independent of its batch pads smaller batches up to this.
MIN_ROWS = 16
# Some libraries cut a sum otherwise where there are few rows: among threads (fp32, MKL), or among tiles (bf16, AMX). On
# one such machine products of 576 to 5,632 terms agreed bitwise from 640 or 896 rows on. Too many to pad up to.
_MANY_ROWS = 1024
_PROBED = (16, 32, 64, 128, 256, 512)
_PROBE_SHAPES = ((576, 960), (1536, 576))  # terms of a sum, columns


def rows_alike_from(dtype: torch.dtype) -> int:
    """From how many rows on the bits of a row do not depend on how many there are, on the CPU.

    Found out by a few products, once a process for each dtype and number of threads (some ten milliseconds).
    """
    return _found(dtype, torch.get_num_threads())


@cache
def _found(dtype: torch.dtype, threads: int) -> int:
    generator = torch.Generator().manual_seed(0)
    for terms, columns in _PROBE_SHAPES:
        left = torch.randn(_MANY_ROWS, terms, generator=generator).to(dtype)
        right = torch.randn(columns, terms, generator=generator).to(dtype).t()
        many = left @ right
        if not all(torch.equal(left[:rows] @ right, many[:rows]) for rows in _PROBED):
            return _MANY_ROWS
    return MIN_ROWS
