"""From how many rows on a row of a matrix product has the same bits whatever the number of rows, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from layercoop_fast.kernels.linear import linear

# The number of terms in each sum of a product, and its number of columns.
Product = tuple[int, int]

# torch's CPU kernels take another path for a handful of rows (rows agree bitwise from 7 or 16 rows on, not below). Code
# that promises that a row is independent of its batch pads smaller batches to this.
MIN_ROWS = 16
# Some libraries cut a sum in another way where there are few rows: among threads (fp32, MKL), or among tiles (bf16,
# AMX). On one such machine products of 576 to 5,632 terms agreed bitwise from 640 or 896 rows on: too many to pad to.
MANY_ROWS = 1024
_PROBED = (16, 24, 64, 100, 256, 512)
# At most so many bytes of a matrix's columns are probed.
_WEIGHT_BYTES = 4 * 2**20
# This many rows and columns are drawn at random; further ones repeat them.
_DRAWN = 64


def rows_alike_from(dtype: torch.dtype, products: Iterable[Product], most: int = MANY_ROWS) -> int:
    """The least number of rows, up to `most`, from which on a row of each product has the same bits for any number.

    It is found by computing products, once a process for each product, dtype and number of threads: some row counts
    from 16 to 512 are compared with the largest, `MANY_ROWS` or `most`. This takes a tenth of a second for a model of
    100 million parameters, and less than a second for the largest. The answer `MANY_ROWS` means "512 or more": whether
    larger counts agree with each other is not probed.

    A probe has all terms of a sum, since the question is how sums are cut, and columns up to 4 MiB of weights.
    Libraries cut sums in another way where there are too few columns to keep all threads and tiles busy; 4 MiB are
    enough for that (256 columns of 4,096 terms in fp32, more where there are fewer terms). A probe also takes the
    inputs and outputs of one product for `most` rows, which is less than a block's activations for as many. Where that
    memory is missing the answer is `MANY_ROWS`: states then go one by one, which takes the least memory.
    """
    most = min(most, MANY_ROWS)
    found = MIN_ROWS
    for terms, columns in sorted(set(products)):
        try:
            found = max(found, _found(dtype, terms, columns, most, torch.get_num_threads()))
        except (RuntimeError, MemoryError):  # torch and oneDNN say so that memory is not there
            return MANY_ROWS
    return found


@cache
def _found(dtype: torch.dtype, terms: int, columns: int, most: int, threads: int) -> int:
    width = max(1, min(columns, _WEIGHT_BYTES // (terms * dtype.itemsize)))
    with torch.inference_mode():
        left, weight = _cancelling(dtype, most, terms, width)
        many = linear(left, weight, None, left.new_empty(most, width))
        alike = MANY_ROWS
        for rows in sorted((rows for rows in _PROBED if rows < most), reverse=True):
            if not torch.equal(linear(left[:rows], weight, None, left.new_empty(rows, width)), many[:rows]):
                return alike
            alike = rows
    return MIN_ROWS


def _cancelling(dtype: torch.dtype, rows: int, terms: int, columns: int) -> tuple[Tensor, Tensor]:
    """Rows [rows, terms] and a weight [columns, terms] whose product is 0 but for the rounding of its sums.

    Every term comes twice, with both signs, at two places drawn at random. Only rounding errors are left of a sum, so
    almost every number shows in which order it was added up. With plain random numbers at most one number in 10,000 of
    a bf16 product shows it.
    """
    generator = torch.Generator().manual_seed(0)
    half = terms // 2
    order = torch.randperm(terms, generator=generator)
    first, second = order[:half], order[half : 2 * half]
    matrices = []
    for count, sign in ((rows, 1), (columns, -1)):
        # The magnitudes differ, so that sums of a few terms are rounded too.
        scale = torch.randint(-3, 4, (half,), generator=generator).exp2()
        values = (torch.randn(min(count, _DRAWN), half, generator=generator) * scale).to(dtype)
        matrix = torch.zeros(len(values), terms, dtype=dtype)
        matrix[:, first], matrix[:, second] = values, sign * values
        matrices.append(matrix.repeat(-(-count // len(matrix)), 1)[:count])
    left, weight = matrices
    return left, weight
