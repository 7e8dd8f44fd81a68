from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.frame import recorded
from layercoop_fast.kernels.gpu.gemv import CONFIGS, launch_quantised
from layercoop_fast.kernels.quantise import pack, quantise_int4, quantise_int8
from layercoop_fast.kernels.quantised_linear import quantised_linear
from layercoop_fast.kernels.reference.quantised import PackedWeight, dequantise, quantised_linear_reference

# rows, columns, outs: one group, several blocks of groups, primes, two launches, none
SHAPES = [(1, 32, 1), (1, 544, 19), (3, 160, 37), (17, 32, 5), (0, 32, 4)]


def given(rows: int, columns: int, outs: int, bits: int, dtype: torch.dtype, device: str):
    x, norm = noise(rows, columns, dtype=dtype), noise(columns, dtype=dtype, seed=1)
    return x.to(device), norm.to(device), pack(noise(outs, columns, seed=2), bits).to(device)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_numbers_are_those_of_the_cpu(bits: int) -> None:
    weight = noise(5, 96)
    weight[1, :32], weight[2, 32:64] = 0.0, 3.0
    expected = dequantise(*(quantise_int4 if bits == 4 else quantise_int8)(weight))
    assert torch.equal(pack(weight, bits).unpack(), expected)
    assert torch.equal(pack(expected, bits).unpack(), expected), "a grid is kept"


def test_where_the_halves_of_a_byte_go() -> None:
    weight = torch.arange(32.0).clamp_max(15).repeat(1, 2)
    weight[0, 32:] = 15 - weight[0, 32:]
    grid = pack(weight, 4)
    assert grid.values[0, :3].tolist() == [0 | 15 << 4, 1 | 15 << 4, 2 | 15 << 4]
    assert torch.equal(grid.unpack(), weight)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(shape, bits: int, normed: bool, device: str) -> None:
    x, norm, weight = given(*shape, bits, torch.float32, device)
    used = norm if normed else None
    expected = quantised_linear_reference(x.double(), weight, None if used is None else used.double(), 1e-5)
    found = quantised_linear(x, weight, used, 1e-5)
    assert_near(found, expected, relative=1e-5, absolute=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_fp16(rows: int, bits: int, device: str) -> None:
    x, norm, weight = given(rows, 64, 9, bits, torch.float16, device)
    expected = quantised_linear_reference(x, weight, norm, 1e-5)
    found = quantised_linear(x, weight, norm, 1e-5)
    # One row is rounded at the end alone; of several, inputs and weights are rounded before the product.
    assert_near(found, expected, relative=2e-3, absolute=2e-3 if rows == 1 else 3e-2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, bits: int, device: str) -> None:
    x, norm, weight = given(1, 1056, 33, bits, torch.float32, device)
    out = torch.empty(1, 33, device=device)
    launch_quantised(x, weight, out, norm=norm, eps=1e-5, config=config)
    assert_near(out, quantised_linear_reference(x, weight, norm, 1e-5), relative=1e-4, absolute=1e-4)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("splits", [1, 2, 5, 100])
def test_columns_split_among_programs(splits: int, normed: bool, device: str) -> None:
    x, norm, weight = given(3, 544, 37, 4, torch.float32, device)
    used = norm if normed else None
    out = torch.empty(3, 37, device=device)
    launch_quantised(x, weight, out, norm=used, eps=1e-5, splits=splits, config=CONFIGS["few"])
    expected = quantised_linear_reference(x.double(), weight, None if used is None else used.double(), 1e-5)
    assert_near(out, expected, relative=1e-5, absolute=1e-4)


def test_outputs_that_do_not_fill_a_chip_are_split() -> None:
    scale = torch.empty(4096, 128, dtype=torch.float16, device="meta")
    weight = PackedWeight(torch.empty(4096, 2048, dtype=torch.uint8, device="meta"), scale, scale)
    x, out = (torch.empty(8, 4096, dtype=torch.bfloat16, device="meta") for _ in range(2))
    with recorded() as launches:
        launch_quantised(x, weight, out)
    assert [launch.grid for launch in launches] == [(128, 2), (16, 8)]


def test_bad_arguments(device: str) -> None:
    x, norm, weight = given(2, 64, 9, 8, torch.float32, device)
    with pytest.raises(RequestError, match="x: 48 columns are not a multiple of 32"):
        quantised_linear(x[:, :48].contiguous(), weight)
    with pytest.raises(RequestError, match=r"values: expected contiguous torch.uint8 \[9, 32\], got torch.int8"):
        quantised_linear(x, replace(weight, minimum=weight.scale))
    with pytest.raises(RequestError, match=r"scale: expected contiguous torch.float16 \[9, 2\]"):
        quantised_linear(x, replace(weight, scale=weight.scale.float()))
    with pytest.raises(RequestError, match=r"norm: expected shape \[64\]"):
        quantised_linear(x, weight, norm[:3])
    with pytest.raises(RequestError, match="weight: expected 4 or 8 bits"):
        pack(noise(2, 33), 4)
