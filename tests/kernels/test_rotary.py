from __future__ import annotations

import numpy as np
import pytest
import torch
from close import assert_near, assert_within_a_rounding, noise
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.reference.blocks import NO_NORMS, HeadNorms, rotary_reference
from layercoop_fast.kernels.rotary import rotary_

# rows, tokens, head width, query heads, key heads, columns that follow
SHAPES = [
    (1, 1, 2, 1, 0, 0),
    (0, 3, 4, 2, 1, 5),
    (6, 3, 10, 3, 1, 7),
    (7, 3, 34, 1, 1, 0),
    (130, 13, 64, 9, 3, 192),
    (5, 5, 66, 2, 2, 1),
    (900, 9, 16, 3, 3, 48),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    rows, tokens, width, query_heads, key_heads, rest = shape
    x = noise(rows, (query_heads + key_heads) * width + rest, dtype=dtype)
    angles = noise(tokens, width, seed=1, scale=3.0)
    return x, angles.cos().to(dtype), angles.sin().to(dtype), query_heads, key_heads


def norms(width: int, dtype: torch.dtype) -> HeadNorms:
    return HeadNorms(noise(width, seed=2).to(dtype), noise(width, seed=3).to(dtype), eps=1e-6)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(level: str, shape: tuple[int, ...], normed: bool) -> None:
    x, cos, sin, query_heads, key_heads = inputs(shape, torch.float32)
    wide = norms(shape[2], torch.float64) if normed else NO_NORMS
    expected = rotary_reference(x.double(), cos.double(), sin.double(), query_heads, key_heads, wide)
    before = x.clone()
    weights = norms(shape[2], torch.float32) if normed else NO_NORMS
    assert rotary_(x, cos, sin, query_heads, key_heads, weights) is x
    assert_near(x, expected, relative=1e-6, absolute=1e-6)
    turned = (query_heads + key_heads) * shape[2]
    assert torch.equal(x[:, turned:], before[:, turned:])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_rounds_where_torch_does(level: str, shape: tuple[int, ...], normed: bool) -> None:
    x, cos, sin, query_heads, key_heads = inputs(shape, torch.bfloat16)
    weights = norms(shape[2], torch.bfloat16) if normed else NO_NORMS
    expected = rotary_reference(x, cos, sin, query_heads, key_heads, weights)
    rotary_(x, cos, sin, query_heads, key_heads, weights)
    if normed:  # a norm off by one rounding may be off by another after a sum that cancels
        assert_near(x, expected, relative=2**-7, absolute=2**-6)
    else:
        assert_within_a_rounding(x, expected)


def test_the_oracle_is_hugging_faces() -> None:
    windows, tokens, width = 2, 5, 12
    x, cos, sin, query_heads, key_heads = inputs((windows * tokens, tokens, width, 3, 1, 0), torch.float32)
    heads = x.view(windows, tokens, query_heads + key_heads, width).transpose(1, 2)
    queries, keys = heads.split([query_heads, key_heads], dim=1)
    turned = torch.cat(apply_rotary_pos_emb(queries, keys, cos[None], sin[None]), dim=1)
    assert torch.equal(rotary_reference(x, cos, sin, query_heads, key_heads), turned.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_of_all_heads_together_and_in_gemmas_form(
    level: str, shape: tuple[int, ...], gemma: bool, joint: bool
) -> None:
    x, cos, sin, query_heads, key_heads = inputs(shape, torch.float32)
    query, key = (noise(shape[2] * (heads if joint else 1), seed=heads) for heads in (query_heads, key_heads))
    weights = HeadNorms(query, key if key_heads else None, 1e-6, gemma)
    wide = HeadNorms(query.double(), key.double() if key_heads else None, 1e-6, gemma)
    expected = rotary_reference(x.double(), cos.double(), sin.double(), query_heads, key_heads, wide)
    found = rotary_(x.clone(), cos, sin, query_heads, key_heads, weights)
    assert_near(found, expected, relative=1e-6, absolute=2e-6)
    few = HeadNorms(query.bfloat16(), key.bfloat16() if key_heads else None, 1e-6, gemma)
    x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
    expected = rotary_reference(x, cos, sin, query_heads, key_heads, few)
    found = rotary_(x, cos, sin, query_heads, key_heads, few)
    # A norm off by one rounding, of up to 4 times what llama's form gives, may be off by another after the sum.
    assert_near(found, expected, relative=2**-7, absolute=2**-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_angles_in_fp32_beside_bf16_are_rounded_once(level: str, shape: tuple[int, ...]) -> None:
    x, cos, sin, query_heads, key_heads = inputs(shape, torch.bfloat16)
    cos, sin = cos.float() * 0.99, sin.float() * 1.01
    expected = rotary_reference(x, cos, sin, query_heads, key_heads)
    exact = rotary_reference(x.double(), cos.double(), sin.double(), query_heads, key_heads)
    found = rotary_(x, cos, sin, query_heads, key_heads)
    assert_within_a_rounding(found, expected)
    assert_near(found, exact, relative=2**-8, absolute=1e-6)


def test_one_norm_alone(level: str) -> None:
    x, cos, sin, query_heads, key_heads = inputs((4, 2, 8, 1, 1, 0), torch.float32)
    weights = HeadNorms(key=noise(8, seed=2), eps=1e-6)
    expected = rotary_reference(x, cos, sin, query_heads, key_heads, weights)
    assert_near(rotary_(x, cos, sin, query_heads, key_heads, weights), expected, relative=1e-5, absolute=1e-6)


def test_other_dtypes_take_the_oracle() -> None:
    x, cos, sin, query_heads, key_heads = (
        v.double() if isinstance(v, torch.Tensor) else v for v in inputs(SHAPES[2], torch.float32)
    )
    expected = rotary_reference(x, cos, sin, query_heads, key_heads)
    assert torch.equal(rotary_(x, cos, sin, query_heads, key_heads), expected)


@pytest.mark.parametrize(
    ("cos_shape", "heads", "message"),
    [
        ((3, 5), (1, 0), "D even"),
        ((0, 4), (1, 0), "T of at least 1"),
        ((3, 4), (3, 1), r"12 columns do not hold 3 \+ 1 heads of 4"),
        ((3, 4), (-1, 1), "columns do not hold -1"),
    ],
)
def test_bad_tensors(cos_shape: tuple[int, int], heads: tuple[int, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        rotary_(noise(6, 12), torch.ones(cos_shape), torch.ones(cos_shape), *heads)


@pytest.mark.parametrize(
    ("cos_shape", "heads", "message"),
    [
        ((3, 5), (1, 0), "cos: 5 columns are an odd number"),
        ((0, 4), (1, 0), "rows of cos: 0 is below 1"),
        ((3, 4), (3, 1), r"x: 12 columns do not hold 3 \+ 1 heads of 4"),
        ((3, 4), (2**62, 2**62), "query_heads: 4611686018427387904 is above"),
        ((3, 4), (-1, 1), "query_heads: -1 is below 0"),
    ],
)
def test_bad_arrays(cos_shape: tuple[int, int], heads: tuple[int, int], message: str) -> None:
    angles = np.ones(cos_shape, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        _C.rotary(np.ones((6, 12), dtype=np.float32), angles, angles, *heads)


@pytest.mark.parametrize("gemma", [False, True])
def test_keys_and_values_go_into_pages(gemma: bool) -> None:
    x, weight = noise(3, 8 * 16), noise(16, seed=1)
    cos, sin = noise(3, 16, seed=2), noise(3, 16, seed=3)
    norms = HeadNorms(weight, weight, 1e-6, gemma)
    pages = torch.zeros(5, 2, 2, 4, 16)
    into = PagePlaces(pages, torch.tensor([4, 0, 2], dtype=torch.int32), torch.tensor([3, 0, 1], dtype=torch.int32))
    expected = rotary_reference(x, cos, sin, 4, 2, norms)
    rotary_(x, cos, sin, 4, 2, norms, into)
    assert_near(x, expected, relative=1e-5, absolute=1e-6)
    for row, (page, slot) in enumerate([(4, 3), (0, 0), (2, 1)]):
        assert torch.equal(pages[page, :, :, slot], x[row, 4 * 16 :].view(2, 2, 16))
    assert torch.count_nonzero(pages) == 3 * 4 * 16
