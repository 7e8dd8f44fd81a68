from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from close import assert_near, noise
from paged import paged
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.decode_attention import CONFIGS, choose_splits, launch_decode
from layercoop_fast.kernels.pages import decode_attention
from layercoop_fast.kernels.reference.attention import (
    PagedContext,
    decode_attention_reference,
    paged_attention_reference,
)

# heads, key and value heads, width, page, lengths, window, soft cap
SHAPES = [
    (1, 1, 1, 1, [1], 0, 0.0),
    (4, 2, 20, 4, [1, 5, 17], 0, 0.0),
    (3, 1, 16, 16, [3, 16, 33], 9, 5.0),
    (34, 2, 33, 8, [21, 7], 20, 0.0),
    (2, 2, 64, 3, [31, 32, 1], 18, 0.7),
]


def both(shape, dtype: torch.dtype, device: str, splits: int) -> tuple[Tensor, Tensor]:
    """The kernel's result, and the oracle's in float64."""
    heads, kv_heads, width, page, lengths, window, cap = shape
    context = paged(lengths, kv_heads, page, width, dtype, device)
    queries = noise(len(lengths), heads * width, dtype=dtype, seed=2).to(device)
    found = torch.empty_like(queries)
    launch_decode(queries, context, found, 0.3, window, cap, splits=splits)
    known = replace(context, pages=context.pages.double())
    expected = decode_attention_reference(queries.double(), known, 0.3, window, cap)
    return found, expected


@pytest.mark.parametrize(("shape", "splits"), [*zip(SHAPES, [1, 2, 1, 4, 3], strict=True), (SHAPES[1], 16)])
def test_fp32_against_float64(shape, splits: int, device: str) -> None:
    assert_near(*both(shape, torch.float32, device, splits), relative=1e-5, absolute=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
@pytest.mark.parametrize("shape", SHAPES[1:2])
def test_16_bits_against_float64(shape, dtype: torch.dtype, tolerance: float, device: str) -> None:
    assert_near(*both(shape, dtype, device, 2), relative=tolerance, absolute=tolerance)


def test_the_oracle_is_a_sequence_of_one_own_token(device: str) -> None:
    heads, kv_heads, width = 4, 2, 8
    context = paged([9, 14], kv_heads, 4, width, torch.float64, device)
    qkv = noise(2, (heads + 2 * kv_heads) * width, seed=2).double().to(device)
    for sequence, length in enumerate([9, 14]):  # its own key and value stand last in the pages too
        page = context.pages[int(context.tables[sequence, (length - 1) // 4])]
        page[:, :, (length - 1) % 4] = qkv[sequence, heads * width :].view(2, kv_heads, width)
    starts = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    before = replace(context, lengths=context.lengths - 1)
    expected = paged_attention_reference(qkv, starts, before, 0.3, 6, 2.0)
    queries = qkv[:, : heads * width]
    found = decode_attention_reference(queries, context, 0.3, 6, 2.0)
    assert_near(found, expected, relative=1e-12, absolute=1e-12)


def test_masks_have_their_own_pages_or_none(device: str) -> None:
    """One table [S, L, M] for all blocks: a sequence without the block gets 0, the others what they get alone."""
    context = paged([5, 17, 9], 2, 4, 16, torch.float32, device)
    queries = noise(3, 64, seed=2).to(device)
    joint = torch.cat([queries, noise(3, 64, seed=3).to(device)], dim=1)
    every = torch.full((3, 4, context.tables.shape[1]), -1, dtype=torch.int32, device=device)
    every[[0, 2], 2] = context.tables[[0, 2]]
    found = decode_attention(joint[:, :64], replace(context, tables=every[:, 2]), 0.3)
    expected = decode_attention(queries, context, 0.3)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert torch.count_nonzero(found[1]) == 0
    assert torch.count_nonzero(expected[1]) == 64


def test_parts_fill_a_chip_and_depend_on_the_host_alone() -> None:
    assert choose_splits(8, 8192) == 32  # one request of an 8B llama
    assert choose_splits(64 * 8, 8192) == 1  # more programs than processors without a cut
    assert choose_splits(8, 100) == 1
    assert choose_splits(0, 0) == 1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    context = paged([70, 3], 1, 16, 16, torch.float32, device)
    queries = noise(2, 48, seed=2).to(device)
    out = torch.empty_like(queries)
    launch_decode(queries, context, out, 0.3, splits=2, config=config)
    known = replace(context, pages=context.pages.double())
    expected = decode_attention_reference(queries.double(), known, 0.3)
    assert_near(out, expected, relative=1e-5, absolute=2e-6)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [(60, 2, "queries: 60 columns are not heads of 16 over 2"), (64, 3, r"queries: expected \[2, heads·D\]")],
)
def test_bad_arguments(columns: int, rows: int, message: str) -> None:
    whole = {"dtype": torch.int32}
    with pytest.raises(RequestError, match=message):
        context = PagedContext(torch.zeros(4, 2, 2, 4, 16), torch.zeros(2, 3, **whole), torch.zeros(2, **whole))
        decode_attention(torch.zeros(rows, columns), context, 0.3)
