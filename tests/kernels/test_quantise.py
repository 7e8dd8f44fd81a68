from __future__ import annotations

import numpy as np
import pytest
import torch
from close import noise
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.quantise import quantise_int4, quantise_int8
from layercoop_fast.kernels.reference.quantised import (
    GROUP,
    dequantise,
    quantise_int4_reference,
    quantise_int8_reference,
)

SHAPES = [(1, 1), (0, 40), (3, 0), (7, 31), (16, 32), (5, 97), (64, 576)]
ORIGINS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def three_threads(restore_core: None) -> None:
    """So that rows are really shared."""
    _C.set_num_threads(3)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_against_the_oracle(shape: tuple[int, int]) -> None:
    weights = heavy_tails(shape)
    found, expected = quantise_int8(weights), quantise_int8_reference(weights)
    assert_as_good(weights, dequantise(*found), dequantise(*expected))
    assert_mostly_equal(found[0], expected[0])
    assert_mostly_equal(found[1], expected[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_against_the_oracle(shape: tuple[int, int]) -> None:
    weights = heavy_tails(shape)
    found, expected = quantise_int4(weights), quantise_int4_reference(weights)
    assert_as_good(weights, dequantise(*found), dequantise(*expected))
    for a, b in zip(found, expected, strict=True):
        assert_mostly_equal(a, b)


def heavy_tails(shape: tuple[int, int]) -> Tensor:
    """Now and then a weight far larger than its neighbours."""
    return noise(*shape, seed=1, scale=0.05) * noise(*shape, seed=2).exp()


def assert_as_good(weights: Tensor, found: Tensor, expected: Tensor) -> None:
    """Candidates of almost equal error may change places, since sums are rounded in another order."""
    errors = [float((kept - weights).square().sum()) for kept in (found, expected)]
    assert errors[0] <= errors[1] * (1 + 1e-4)


def assert_mostly_equal(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert int((found != expected).sum()) <= 0.005 * found.numel()


def test_cutting_the_range_pays() -> None:
    weights = heavy_tails((64, 256))
    plain = quantised_plainly(weights)
    found = dequantise(*quantise_int4(weights))
    assert float((found - weights).square().mean()) < 0.85 * float((plain - weights).square().mean())
    worse = (found - weights).reshape(-1, GROUP).square().sum(1) - (plain - weights).reshape(-1, GROUP).square().sum(1)
    assert float(worse.max()) <= 1e-6


def quantised_plainly(weights: Tensor) -> Tensor:
    """int4 on the whole range of each group."""
    groups = weights.reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale, low = ((high - low) / 15).half().float(), low.half().float()
    return (((groups - low) / scale).round().clamp(0, 15) * scale + low).reshape(weights.shape)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("columns", [32, 96, 70, 7])
def test_a_q4_1_grid_is_carried_exactly(origin: torch.dtype, columns: int) -> None:
    weights = q4_1_blocks(200, columns).to(origin)
    found = dequantise(*quantise_int4(weights))
    assert torch.equal(found.to(origin), weights)


def q4_1_blocks(rows: int, columns: int) -> Tensor:
    """What llama.cpp makes of weights: scales and mins from the range of each group, over many sizes."""
    groups = -(-columns // GROUP)
    weights = noise(rows, groups, GROUP, seed=3) * 10 ** (noise(rows, groups, 1, seed=4) - 1.5)
    low, high = weights.amin(2, keepdim=True), weights.amax(2, keepdim=True)
    scale = (high - low) / 15
    q = ((weights - low) / scale).round()
    return (scale.half().float() * q + low.half().float()).reshape(rows, -1)[:, :columns].contiguous()


def test_blocks_themselves_come_back_from_fp32() -> None:
    q = torch.randint(0, 16, (50, 64), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    q[:, ::32], q[:, 1::32] = 0, 15
    scales = noise(50, 2, dtype=torch.float16, seed=6).abs()
    mins = noise(50, 2, dtype=torch.float16, seed=7) * 8
    for found, expected in zip(quantise_int4(dequantise(q, scales, mins)), (q, scales, mins), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("first", "last"), [(0, 14), (3, 12), (5, 15), (7, 8)])
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_grid_of_which_a_part_is_used(origin: torch.dtype, first: int, last: int) -> None:
    generator = torch.Generator().manual_seed(first)
    q = torch.randint(first, last + 1, (60, 32), generator=generator, dtype=torch.uint8)
    scales, mins = noise(60, 1, dtype=torch.float16, seed=8).abs(), noise(60, 1, dtype=torch.float16, seed=9)
    weights = dequantise(q, scales, mins - 8 * scales).to(origin)
    assert torch.equal(dequantise(*quantise_int4(weights)).to(origin), weights)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("columns", [32, 70])
def test_a_q8_0_grid_is_carried_exactly(origin: torch.dtype, columns: int) -> None:
    groups = -(-columns // GROUP)
    weights = noise(200, groups, GROUP, seed=10) * 10 ** (noise(200, groups, 1, seed=11) - 1.5)
    scale = weights.abs().amax(2, keepdim=True) / 127
    q = (weights / scale).round()
    blocks = (scale.half().float() * q).reshape(200, -1)[:, :columns].contiguous().to(origin)
    assert torch.equal(dequantise(*quantise_int8(blocks)).to(origin), blocks)


def test_four_bits_around_zero_are_a_grid_of_eight() -> None:
    q = torch.randint(-8, 8, (60, 32), generator=torch.Generator().manual_seed(12), dtype=torch.int8)
    weights = dequantise(q, noise(60, 1, dtype=torch.float16, seed=13)).bfloat16()
    assert torch.equal(dequantise(*quantise_int8(weights)).bfloat16(), weights)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("columns", [64, 77, 5])
def test_every_instruction_set_and_thread_finds_the_same_bits(origin: torch.dtype, columns: int) -> None:
    q = torch.randint(-40, 90, (100, columns), generator=torch.Generator().manual_seed(16), dtype=torch.int8)
    on_grid = dequantise(q, noise(100, -(-columns // GROUP), dtype=torch.float16, seed=17) / 100)
    weights = torch.cat([heavy_tails((200, columns)), on_grid, q4_1_blocks(100, columns)]).to(origin)
    found = []
    for isa in _C.isa_available():
        for threads in (1, 3):
            _C.set_isa(isa)
            _C.set_num_threads(threads)
            found.append((*quantise_int8(weights), *quantise_int4(weights)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("top", [127, 7, 4, 1])
def test_a_grid_around_zero_of_many_or_few_values(origin: torch.dtype, top: int) -> None:
    q = torch.randint(-top, top + 1, (60, 96), generator=torch.Generator().manual_seed(top), dtype=torch.int8)
    q[:, ::32] = top
    # Down to scales that are subnormal in fp16.
    scales = (noise(60, 3, seed=18).abs() * 10 ** (1.5 * noise(60, 3, seed=19) - 3)).half()
    weights = dequantise(q, scales).to(origin)
    assert torch.equal(dequantise(*quantise_int8(weights)).to(origin), weights)


def test_weights_that_are_all_one_number() -> None:
    for value in (0.0, -0.0, 0.25, -3.0):
        weights = torch.full((2, 40), value)
        assert torch.equal(dequantise(*quantise_int4(weights)), weights)
    assert torch.equal(dequantise(*quantise_int8(torch.zeros(2, 40))), torch.zeros(2, 40))
    assert not quantise_int8(torch.full((1, 40), 1e-9))[0].any()


def test_scales_are_rounded_to_the_nearest_half() -> None:
    random = noise(5000, 1, seed=14) * 10 ** (4 * noise(5000, 1, seed=15) - 2)
    halves = torch.arange(0x7BFF, dtype=torch.int16).view(torch.float16).float()
    ties = (halves[:-1] + halves[1:]) / 2
    weights = torch.cat([random.clamp(-6e4, 6e4), halves[:, None], -ties[:, None]])
    expected = torch.from_numpy(weights.numpy().astype(np.float16))
    assert torch.equal(quantise_int4(weights)[2], expected)


def test_bad_weights() -> None:
    for quantise in (quantise_int8, quantise_int4):
        with pytest.raises(RequestError, match="weights: not all are finite"):
            quantise(torch.tensor([[1.0, float("inf")]]))
        with pytest.raises(RequestError, match="weights: too large for scales in fp16"):
            quantise(noise(2, 40) * 1e30)
        with pytest.raises(RequestError, match=r"weights: expected fp32, bf16 or fp16 on the CPU, got torch\.float64"):
            quantise(noise(2, 40).double())
        with pytest.raises(RequestError, match="weights: expected a contiguous floating-point matrix"):
            quantise(noise(40))
