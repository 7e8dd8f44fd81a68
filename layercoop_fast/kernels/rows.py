"""How many rows a matrix product needs so that a row's result does not depend on the rows beside it."""

from __future__ import annotations

import torch

# torch's CPU kernels take another path for a handful of rows (measured: in fp32 rows agree bitwise from 7 rows on, not
# below); whoever promises that a row is independent of its batch pads smaller batches up to this.
MIN_ROWS = 16
# In bf16 the order of a sum changes with the number of rows up to some hundreds (measured: rows of products of 576 to
# 5,632 terms agree bitwise from 640 rows on, not at 320). Too many to pad up to.
_ALIKE_FROM = {torch.bfloat16: 1024, torch.float16: 1024}


def rows_alike_from(dtype: torch.dtype) -> int:
    """From how many rows on the bits of a row do not depend on how many there are, on the CPU."""
    return _ALIKE_FROM.get(dtype, MIN_ROWS)
