from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from close import assert_near, noise
from paged import paged
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.paged_attention import CONFIGS, launch_paged
from layercoop_fast.kernels.pages import paged_attention
from layercoop_fast.kernels.reference.attention import (
    PagedContext,
    causal_attention_reference,
    paged_attention_reference,
)

# heads, key and value heads, width, page, context lengths, own tokens, window, soft cap
SHAPES = [
    (1, 1, 1, 1, [0], [1], 0, 0.0),
    (4, 2, 20, 4, [0, 5, 17], [7, 1, 3], 0, 0.0),
    (3, 1, 16, 16, [3, 0, 18], [5, 19, 0], 9, 5.0),
    (4, 2, 33, 8, [24, 7], [2, 17], 1, 0.0),
    (2, 2, 64, 3, [31, 32, 1], [16, 17, 1], 18, 0.7),
]


def own_tokens(heads: int, kv_heads: int, width: int, news: list[int], dtype: torch.dtype, device: str):
    starts = torch.tensor([0, *news]).cumsum(0).to(torch.int32).to(device)
    return noise(sum(news), (heads + 2 * kv_heads) * width, dtype=dtype, seed=2).to(device), starts


def both(shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """The kernel's result, and the oracle's in float64."""
    heads, kv_heads, width, page, lengths, news, window, cap = shape
    context = paged(lengths, kv_heads, page, width, dtype, device)
    qkv, starts = own_tokens(heads, kv_heads, width, news, dtype, device)
    found = paged_attention(qkv, starts, context, max(news), 0.3, window, cap)
    known = replace(context, pages=context.pages.double())
    expected = paged_attention_reference(qkv.double(), starts, known, 0.3, window, cap)
    assert found.dtype == dtype
    assert found.shape == expected.shape == (sum(news), heads * width)
    return found, expected


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(shape, device: str) -> None:
    assert_near(*both(shape, torch.float32, device), relative=1e-5, absolute=5e-6)


# Weights are rounded to the dtype before they multiply values, and so is the result; the interpreter cuts bf16 off.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
@pytest.mark.parametrize("shape", SHAPES[1:2])
def test_16_bits_against_float64(shape, dtype: torch.dtype, tolerance: float, device: str) -> None:
    assert_near(*both(shape, dtype, device), relative=tolerance, absolute=tolerance)


def test_the_oracle_without_context_is_that_of_windows(device: str) -> None:
    heads, kv_heads, width, tokens = 4, 2, 8, 11
    context = paged([0, 0], kv_heads, 4, width, torch.float64, device)
    qkv, starts = own_tokens(heads, kv_heads, width, [tokens, tokens], torch.float64, device)
    found = paged_attention_reference(qkv, starts, context, 0.4)
    assert_near(found, causal_attention_reference(qkv, tokens, heads, kv_heads, 0.4), relative=1e-12, absolute=1e-12)


def test_a_context_is_what_its_tokens_would_be(device: str) -> None:
    """A text cut in two, the first part put into pages, has the second part's rows of the whole text."""
    heads, kv_heads, width, page, cut, tokens = 4, 2, 16, 4, 10, 17
    qkv, _ = own_tokens(heads, kv_heads, width, [tokens], torch.float32, device)
    whole = causal_attention_reference(qkv, tokens, heads, kv_heads, 0.3)
    pages = torch.zeros(5, 2, kv_heads, page, width, device=device)
    table = torch.tensor([[4, 0, 2]], dtype=torch.int32, device=device)
    keys_and_values = qkv[:cut].view(cut, heads + 2 * kv_heads, width)[:, heads:].view(cut, 2, kv_heads, width)
    for token in range(cut):
        pages[int(table[0, token // page]), :, :, token % page] = keys_and_values[token]
    starts = torch.tensor([0, tokens - cut], dtype=torch.int32, device=device)
    lengths = torch.tensor([cut], dtype=torch.int32, device=device)
    found = paged_attention(qkv[cut:].contiguous(), starts, PagedContext(pages, table, lengths), tokens - cut, 0.3)
    assert_near(found, whole[cut:], relative=1e-5, absolute=2e-6)


def test_tables_of_one_block_among_all(device: str) -> None:
    context = paged([5, 17, 9], 2, 4, 16, torch.float32, device)
    qkv, starts = own_tokens(4, 2, 16, [3, 1, 2], torch.float32, device)
    every = torch.full((3, 4, context.tables.shape[1]), -1, dtype=torch.int32, device=device)
    every[:, 2] = context.tables
    expected = paged_attention(qkv, starts, context, 3, 0.3)
    assert torch.equal(paged_attention(qkv, starts, replace(context, tables=every[:, 2]), 3, 0.3), expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    context = paged([70, 3], 1, 16, 16, torch.float32, device)
    qkv, starts = own_tokens(1, 1, 16, [40, 21], torch.float32, device)
    out = torch.empty(len(qkv), 16, device=device)
    launch_paged(qkv, starts, context, out, 40, 0.3, config=config)
    known = replace(context, pages=context.pages.double())
    expected = paged_attention_reference(qkv.double(), starts, known, 0.3)
    assert_near(out, expected, relative=1e-5, absolute=5e-6)


BAD = [
    ({"qkv": (5, 63)}, "qkv: 63 columns are not heads of 16"),
    ({"pages": (4, 3, 2, 4, 16)}, "pages: expected contiguous"),
    ({"tables": (3, 4)}, r"tables: expected \[2, M\]"),
    ({"starts": (2,)}, r"starts: expected contiguous int32 or int64 \[3\]"),
    ({"scale": 0.0}, "scale: 0.0 is not a positive number"),
    ({"sliding_window": -1}, "sliding_window: -1 is not a number of tokens"),
    ({"cap": -1.0}, "cap: -1.0 is not a positive number"),
    ({"longest": -1}, "longest: -1"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arguments(changed: dict[str, object], message: str) -> None:
    shapes = {"qkv": (5, 128), "starts": (3,), "pages": (4, 2, 2, 4, 16), "tables": (2, 3), "lengths": (2,)}
    numbers = {"longest": 3, "scale": 0.3, "sliding_window": 0, "cap": 0.0}
    numbers.update({name: value for name, value in changed.items() if name in numbers})
    shapes.update({name: value for name, value in changed.items() if name in shapes})
    integers = ("starts", "tables", "lengths")
    tensors = {
        name: torch.zeros(shape, dtype=torch.int32 if name in integers else torch.float32)
        for name, shape in shapes.items()
    }
    with pytest.raises(RequestError, match=message):
        context = PagedContext(*(tensors.pop(name) for name in ("pages", "tables", "lengths")))
        paged_attention(**tensors, context=context, **numbers)
