"""Attention over pages by torch's operations: what a GPU does where the Triton kernel is not to be used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from close import assert_near, noise
from paged import paged

from layercoop_fast.kernels.pages import decode_attention
from layercoop_fast.kernels.reference.attention import decode_attention_reference

# heads, kv heads, width, page, lengths, sliding window, cap
SHAPES = [
    (1, 1, 1, 1, [1], 0, 0.0),
    (4, 2, 8, 4, [5, 9, 5, 1], 0, 0.0),
    (6, 2, 16, 16, [40, 3, 33], 7, 0.0),
    (8, 1, 12, 5, [11, 25], 0, 3.0),
]
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_oracle(
    shape: tuple[int, int, int, int, list[int], int, float], dtype: torch.dtype, tolerance: float
) -> None:
    heads, kv_heads, width, page, lengths, window, cap = shape
    context = paged(lengths, kv_heads, page, width, dtype, "cpu")
    queries = noise(len(lengths), heads * width, dtype=dtype, seed=2)
    found = decode_attention(queries, context, 0.3, window, cap)
    known = replace(context, pages=context.pages.double())
    expected = decode_attention_reference(queries.double(), known, 0.3, window, cap)
    assert found.dtype == dtype
    assert_near(found, expected, relative=tolerance, absolute=tolerance)


def test_sequences_without_pages_and_without_tokens_get_nothing() -> None:
    context = paged([5, 17, 9], 2, 4, 16, torch.float32, "cpu")
    tables, lengths = context.tables.clone(), context.lengths.clone()
    tables[1], lengths[2] = -1, 0
    queries = noise(3, 64, seed=2)
    found = decode_attention(queries, replace(context, tables=tables, lengths=lengths), 0.3)
    assert_near(found[:1], decode_attention_reference(queries, context, 0.3)[:1], relative=1e-5, absolute=1e-6)
    assert torch.count_nonzero(found[1:]) == 0
