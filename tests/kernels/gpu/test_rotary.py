from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.rotary import CONFIGS, launch_rotary
from layercoop_fast.kernels.reference.blocks import NO_NORMS, HeadNorms, rotary_reference
from layercoop_fast.kernels.rotary import rotary_

# rows, tokens of a window, query heads, key heads, head width, columns behind them
SHAPES = [(1, 1, 1, 1, 2, 0), (6, 3, 3, 1, 6, 6), (0, 2, 2, 2, 4, 0), (5, 5, 14, 7, 10, 3), (4, 2, 0, 2, 64, 1)]


def given(shape, dtype: torch.dtype, device: str):
    rows, tokens, queries, keys, width, rest = shape
    x = noise(rows, (queries + keys) * width + rest, dtype=dtype)
    tables = [noise(tokens, width, dtype=dtype, seed=seed) for seed in (1, 2)]
    norms = [noise(width, dtype=dtype, seed=seed) for seed in (3, 4)]
    return [each.to(device) for each in (x, *tables, *norms)]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "qk-norm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(shape, norm: bool, device: str) -> None:
    x, cos, sin, query_norm, key_norm = given(shape, torch.float32, device)
    wide = HeadNorms(query_norm.double(), key_norm.double(), 1e-6) if norm else NO_NORMS
    expected = rotary_reference(x.double(), cos.double(), sin.double(), shape[2], shape[3], wide)
    rotary_(x, cos, sin, shape[2], shape[3], HeadNorms(query_norm, key_norm, 1e-6) if norm else NO_NORMS)
    assert_near(x, expected, relative=1e-5, absolute=1e-5)


@pytest.mark.parametrize("norm", ["none", "query", "key", "both"])
def test_fp16_rounds_where_the_models_do(norm: str, device: str) -> None:
    shape = (6, 3, 3, 2, 16, 16)
    x, cos, sin, query_norm, key_norm = given(shape, torch.float16, device)
    norms = HeadNorms(
        query_norm if norm in ("query", "both") else None, key_norm if norm in ("key", "both") else None, 1e-6
    )
    expected = rotary_reference(x, cos, sin, 3, 2, norms)
    rotary_(x, cos, sin, 3, 2, norms)
    if norm == "none":
        assert torch.equal(x, expected)
    # A quotient on the border between two numbers may be rounded the other way.
    assert_near(x, expected, relative=2e-3, absolute=2e-3)


def test_bf16(device: str) -> None:
    x, cos, sin, _, _ = given((6, 3, 3, 2, 16, 16), torch.bfloat16, device)
    expected = rotary_reference(x, cos, sin, 3, 2)
    rotary_(x, cos, sin, 3, 2)
    assert_near(x, expected, relative=2**-7, absolute=2**-6)  # three roundings, which the interpreter cuts off instead


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    x, cos, sin, _, _ = given((3, 3, 17, 2, 6, 0), torch.float32, device)
    expected = rotary_reference(x, cos, sin, 17, 2)
    launch_rotary(x, cos, sin, 17, 2, config=config)
    assert_near(x, expected, relative=1e-5, absolute=1e-6)


def test_bad_arguments(device: str) -> None:
    x, cos, sin, query_norm, _ = given((6, 3, 3, 2, 16, 0), torch.float32, device)
    with pytest.raises(RequestError, match=r"x: 80 columns do not hold 4 \+ 2 heads of 16"):
        rotary_(x, cos, sin, 4, 2)
    with pytest.raises(RequestError, match=r"query_norm: expected shape \[48\], got \[15\]"):
        rotary_(x, cos, sin, 3, 2, HeadNorms(query_norm[:15]))
