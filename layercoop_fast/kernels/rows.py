"""From how many rows on the bits of a row of a matrix product do not depend on how many rows there are, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

# A product's number of terms in each sum, and of columns.
Product = tuple[int, int]

# torch's CPU kernels take another path for a handful of rows (rows agree bitwise from 7 or 16 rows on, not below);
# whoever promises that a row is independent of its batch pads smaller batches up to this.
MIN_ROWS = 16
# Some libraries cut a sum otherwise where there are few rows: among threads (fp32, MKL), or among tiles (bf16, AMX). On
# one such machine products of 576 to 5,632 terms agreed bitwise from 640 or 896 rows on. Too many to pad up to.
MANY_ROWS = 1024
_PROBED = (16, 24, 64, 100, 256, 512)
# Of a wider matrix only so many bytes of columns are probed.
_WEIGHT_BYTES = 4 * 2**20
# So many rows and columns are drawn at random; further ones repeat them.
_DRAWN = 64


def rows_alike_from(dtype: torch.dtype, products: Iterable[Product], most: int = MANY_ROWS) -> int:
    """From how many rows on, up to `most`, a row of each of these products has the same bits however many there are.

    This is found by computing them, once a process for each product, dtype and number of threads: some row counts from
    16 to 512 against the largest one, `MANY_ROWS` or `most`. It takes a tenth of a second for a model of 100 million
    parameters, and less than a second for the largest. `MANY_ROWS` stands for "512 or more": that larger counts agree
    with each other is not probed here.

    All terms of a sum are there, since how a sum is cut is what is asked. Columns too, up to 4 MiB of weights:
    libraries cut sums otherwise where there are too few columns to keep all threads and tiles busy, and 4 MiB are
    enough for that (256 columns of 4,096 terms in fp32, more where there are fewer terms). Beside these 4 MiB a probe
    takes one product's inputs and outputs for `most` rows, which is less than a block's activations for as many. Where
    the memory for it is not there, the answer is `MANY_ROWS`: states then go one by one, which takes the least memory.
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
        left, right = _cancelling(dtype, most, terms, width)
        many = torch.mm(left, right)
        alike = MANY_ROWS
        for rows in sorted((rows for rows in _PROBED if rows < most), reverse=True):
            if not torch.equal(torch.mm(left[:rows], right), many[:rows]):
                return alike
            alike = rows
    return MIN_ROWS


def _cancelling(dtype: torch.dtype, rows: int, terms: int, columns: int) -> tuple[Tensor, Tensor]:
    """Matrices [rows, terms] and [terms, columns] whose product is 0 but for the rounding of its sums.

    Every term comes twice, with both signs, at two places drawn at random. What is left of a sum is what was rounded on
    the way, so that almost every number shows in which order it was added up; of plain random numbers a product in
    bf16 shows that in one of 10,000 or fewer.
    """
    generator = torch.Generator().manual_seed(0)
    half = terms // 2
    order = torch.randperm(terms, generator=generator)
    first, second = order[:half], order[half : 2 * half]
    matrices = []
    for count, sign in ((rows, 1), (columns, -1)):
        # Of many magnitudes, so that sums of a few terms are rounded too.
        scale = torch.randint(-3, 4, (half,), generator=generator).exp2()
        values = (torch.randn(min(count, _DRAWN), half, generator=generator) * scale).to(dtype)
        matrix = torch.zeros(len(values), terms, dtype=dtype)
        matrix[:, first], matrix[:, second] = values, sign * values
        matrices.append(matrix.repeat(-(-count // len(matrix)), 1)[:count])
    left, right = matrices
    return left, right.t()
