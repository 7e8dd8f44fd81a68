"""How many rows a matrix product needs so that a row's result does not depend on the rows beside it."""

from __future__ import annotations

from functools import cache

import torch

# torch's CPU kernels take another path for a handful of rows (measured: rows agree bitwise from 7 rows on, not below);
# whoever promises that a row is independent of its batch pads smaller batches up to this.
MIN_ROWS = 16
# In bf16 on processors with AMX the order of a sum changes with the number of rows up to some hundreds (measured:
# products of 576 to 5,632 terms agree bitwise from 640 or 1,024 rows on, not at 320). Too many to pad up to.
_MANY_ROWS = 1024
_PROBED = (16, 32, 64, 128, 256, 512)
_PROBE_SHAPES = ((576, 960), (1536, 576), (2048, 1024))  # terms of a sum, columns


@cache
def rows_alike_from(dtype: torch.dtype) -> int:
    """From how many rows on the bits of a row do not depend on how many there are, on the CPU.

    `MIN_ROWS` in fp32. In 16-bit dtypes that is found out by a few products (some 20 ms, once a process).
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return MIN_ROWS
    generator = torch.Generator().manual_seed(0)
    for terms, columns in _PROBE_SHAPES:
        left = torch.randn(_MANY_ROWS, terms, generator=generator).to(dtype)
        right = torch.randn(columns, terms, generator=generator).to(dtype).t()
        many = left @ right
        if not all(torch.equal(left[:rows] @ right, many[:rows]) for rows in _PROBED):
            return _MANY_ROWS
    return MIN_ROWS
