from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from close import noise
from packed_linear import PackedLinear
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.quantise import quantise_int4, quantise_int8
from layercoop_fast.kernels.reference.quantised import dequantise, linear_reference, quantise_inputs_reference
from layercoop_fast.llama.native_packing import FORMATS

# Rows, outputs, inputs: ones, primes, around a tile of 16 and a group of 32, nothing, and those of a small real model.
SHAPES = [
    (1, 1, 1),
    (1, 17, 31),
    (3, 16, 32),
    (5, 7, 97),
    (6, 15, 33),
    (16, 33, 64),
    (17, 83, 65),
    (20, 130, 1100),
    (0, 5, 40),
    (4, 0, 8),
    (3, 5, 0),
    (2, 960, 576),
    (4, 192, 1536),
]


def levels() -> list[tuple[str, str]]:
    """Instruction sets, the last one also without its products of matrices, and without its dot products too."""
    names = _C.isa_available()
    matrices = any("matrices" in name for name in _C.dots())
    return [
        *((name, "") for name in names),
        *((names[-1], f"-without-{what}") for what, there in [("matrices", matrices), ("dots", _C.dots())] if there),
    ]


@pytest.fixture(params=levels(), ids="".join)
def path(request: pytest.FixtureRequest, restore_core: None) -> Iterator[str]:
    """Each way a product can go, with three threads so that ranges are really shared."""
    name, without = request.param
    _C.set_isa(name)
    _C.allow_matrices(without != "-without-matrices")
    _C.allow_dots(without != "-without-dots")
    _C.set_num_threads(3)
    yield name
    _C.allow_matrices(True)
    _C.allow_dots(True)


def oracle(x: Tensor, weight: Tensor, format: str) -> Tensor:
    return linear_reference(x, weight, format, bf16_inputs="bf16" in _C.dots())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_against_float64(path: str, shape: tuple[int, int, int], format: str) -> None:
    rows, outputs, inputs = shape
    weight = noise(outputs, inputs, seed=1, scale=0.1)
    x = noise(rows, inputs, seed=2)
    packed = PackedLinear(weight, format)
    kept = packed.unpack().double()
    found = packed(x)
    expected = oracle(x, kept, format)
    # fp32 sums of up to 1,536 terms, in order: well within 4e-6 of the sum of the terms' sizes.
    assert found.shape == expected.shape
    assert torch.all((found - expected).abs() <= 4e-6 * oracle(x.abs(), kept.abs(), format))


@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (37, 70), (5, 0)])
def test_what_is_kept(shape: tuple[int, int]) -> None:
    weight = noise(*shape, seed=3)
    assert torch.equal(PackedLinear(weight, "fp32").unpack(), weight)
    assert torch.equal(PackedLinear(weight, "bf16").unpack(), weight.bfloat16().float())
    assert torch.equal(PackedLinear(weight, "int8").unpack(), dequantise(*quantise_int8(weight)))
    assert torch.equal(PackedLinear(weight, "int4").unpack(), dequantise(*quantise_int4(weight)))


def test_bf16_rounds_ties_to_even() -> None:
    ties = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 3e-39, 0.0]])
    assert torch.equal(PackedLinear(ties, "bf16").unpack(), ties.bfloat16().float())


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_company(path: str, format: str) -> None:
    packed = PackedLinear(noise(150, 200, seed=4), format)
    x = noise(17, 200, seed=5)
    alone = torch.cat([packed(x[r : r + 1]) for r in range(len(x))])
    for rows in range(1, len(x) + 1):
        assert torch.equal(packed(x[:rows]), alone[:rows])
    _C.set_num_threads(1)
    assert torch.equal(packed(x), alone)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_the_largest_integers_do_not_overflow(path: str, format: str) -> None:
    signs = noise(32, 64, seed=6).sign()
    x = torch.cat([signs, torch.ones(1, 64), -torch.ones(1, 64)])
    if format == "int8":
        packed = PackedLinear(torch.zeros(32, 64), format)
        ones = np.full((32, 2), np.float16(1).view(np.uint16))
        packed.packed.fill_int8(0, (127 * signs).to(torch.int8).numpy(), ones)
        kept = 127 * signs
    else:
        kept = 15 * (signs + 1) / 2
        packed = PackedLinear(kept, format)
    assert torch.equal(packed.unpack(), kept)
    torch.testing.assert_close(packed(x), x @ kept.T, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_stays_in_its_row(path: str, format: str) -> None:
    packed = PackedLinear(noise(20, 70, seed=7), format)
    x = noise(4, 70, seed=8)
    broken = x.clone()
    broken[1, 3], broken[2, 69] = float("nan"), float("inf")
    found = packed(broken)
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[[0, 3]], packed(x)[[0, 3]])


def test_inputs_of_no_size() -> None:
    packed = PackedLinear(noise(20, 70), "int8")
    assert torch.equal(packed(torch.zeros(2, 70)), torch.zeros(2, 20))
    assert torch.equal(packed(torch.full((2, 70), 1e-35)), torch.zeros(2, 20))
    assert not quantise_inputs_reference(torch.full((1, 5), 1e-35))[0].any()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_can_be_filled_in_any_order(format: str) -> None:
    weight = noise(50, 40, seed=9)
    whole = PackedLinear(weight, format)
    packed = _C.PackedMatrix(format, 50, 40)
    for first, last in [(33, 50), (0, 7), (7, 33)]:
        packed.fill(first, weight[first:last].numpy(), "fp32")
    found = np.empty((50, 40), dtype=np.float32)
    packed.unpack(0, found)
    assert torch.equal(torch.from_numpy(found), whole.unpack())
    assert torch.equal(whole.unpack(13, 20), whole.unpack()[13:33])


def test_groups_are_taken_as_they_are(path: str) -> None:
    generator = torch.Generator().manual_seed(10)
    q8 = torch.randint(-127, 128, (19, 70), generator=generator, dtype=torch.int8)
    q4 = torch.randint(0, 16, (19, 70), generator=generator, dtype=torch.uint8)
    scales, mins = noise(19, 3, dtype=torch.float16, seed=11), noise(19, 3, dtype=torch.float16, seed=12)
    bits = [value.numpy().view(np.uint16) for value in (scales, mins)]
    for format, arrays, expected in [
        ("int8", (q8.numpy(), bits[0]), dequantise(q8, scales)),
        ("int4", (q4.numpy(), *bits), dequantise(q4, scales, mins)),
    ]:
        packed = PackedLinear(torch.zeros(19, 70), format)
        getattr(packed.packed, f"fill_{format}")(0, *arrays)
        assert torch.equal(packed.unpack(), expected)
        x = noise(3, 70, seed=13)
        sizes = oracle(x.abs(), expected.abs().double(), format)
        product = oracle(x, expected.double(), format)
        assert torch.all((packed(x) - product).abs() <= 4e-6 * sizes + 1e-4)


def test_every_half_is_read_right(path: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))].reshape(-1, 1)
    packed = _C.PackedMatrix("int8", len(bits), 1)
    packed.fill_int8(0, np.ones((len(bits), 1), dtype=np.int8), bits)
    expected = bits.view(np.float16).astype(np.float32)
    found = np.empty((len(bits), 1), dtype=np.float32)
    packed.unpack(0, found)
    assert np.array_equal(found, expected)
    products = np.empty((1, len(bits)), dtype=np.float32)
    packed.multiply(np.array([[127.0]], dtype=np.float32), products)
    assert np.array_equal(products[0], 127 * expected[:, 0])


@pytest.mark.parametrize(("format", "bits"), [("fp32", 32), ("bf16", 16), ("int8", 8.5), ("int4", 5)])
def test_bytes(format: str, bits: float) -> None:
    assert PackedLinear(torch.zeros(32, 64), format).nbytes == 32 * 64 * bits / 8
    assert PackedLinear(torch.zeros(17, 33), format).nbytes == 32 * 64 * bits / 8


def bad(weight: Tensor, format: str = "int8") -> str:
    with pytest.raises(RequestError) as raised:
        PackedLinear(weight, format)
    return str(raised.value)


def test_bad_arguments() -> None:
    assert bad(noise(2, 3), "int5") == "format: unknown 'int5'; use one of fp32, bf16, int8, int4"
    assert bad(noise(2, 3).double()).startswith("weight: expected fp32, bf16 or fp16 on the CPU, got torch.float64")
    assert bad(noise(6)).startswith("weight: expected a contiguous floating-point matrix")
    for format in FORMATS:
        assert bad(torch.tensor([[1.0, float("nan")]]), format) == "weights: not all are finite"
    assert bad(torch.full((1, 2), 1e30), "int4") == "weights: too large for scales in fp16"
    packed = PackedLinear(noise(2, 3), "fp32")
    with pytest.raises(RequestError, match=r"x: expected shape \[1, 3\], got \[1, 4\]"):
        packed(noise(1, 4))
    with pytest.raises(RequestError, match=r"out: expected shape \[1, 2\], got \[2, 2\]"):
        packed(noise(1, 3), out=noise(2, 2))
    with pytest.raises(RequestError, match="rows 1 to 3 are not within 2"):
        packed.unpack(1, 2)


def test_bad_arguments_to_the_core() -> None:
    packed = _C.PackedMatrix("int8", 4, 8)
    with pytest.raises(ValueError, match="format: unknown 'fp64'; use one of fp32, bf16, int8, int4"):
        _C.PackedMatrix("fp64", 4, 8)
    with pytest.raises(ValueError, match="rows: -1 is below 0"):
        _C.PackedMatrix("int8", -1, 8)
    with pytest.raises(ValueError, match="weights: rows 3 to 5 are not within 4"):
        packed.fill(3, np.zeros((2, 8), dtype=np.float32), "fp32")
    with pytest.raises(ValueError, match="origin: unknown 'fp8'; use one of fp32, bf16, fp16"):
        packed.fill(0, np.zeros((2, 8), dtype=np.float32), "fp8")
    with pytest.raises(ValueError, match="format: expected int4, got int8"):
        packed.fill_int4(0, *(np.zeros((4, n), dtype=d) for n, d in [(8, np.uint8), (1, np.uint16), (1, np.uint16)]))
    with pytest.raises(ValueError, match=r"q: -128 is not in -127\.\.127"):
        packed.fill_int8(0, np.full((4, 8), -128, dtype=np.int8), np.zeros((4, 1), dtype=np.uint16))
    with pytest.raises(ValueError, match=r"q: 16 is not in 0\.\.15"):
        _C.PackedMatrix("int4", 1, 2).fill_int4(
            0, np.array([[15, 16]], dtype=np.uint8), *(np.zeros((1, 1), dtype=np.uint16) for _ in range(2))
        )
    with pytest.raises(TypeError, match=r"x: expected a C-contiguous numpy array float32"):
        packed.multiply(np.zeros((1, 8)), np.zeros((1, 4), dtype=np.float32))
