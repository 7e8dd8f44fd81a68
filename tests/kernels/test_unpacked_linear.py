"""Products of many rows with the weights of a model as they lie in memory: the core's, and who computes them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from close import assert_near, noise
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.kernels import linear as module
from layercoop_fast.kernels.linear import core_multiplies, linear
from layercoop_fast.kernels.memory import array
from layercoop_fast.kernels.reference.linear import product_reference

# Rows, outputs, inputs: ones, nothing, around a tile of 16, more rows than a piece, and those of a small real model.
SHAPES = [
    (1, 1, 2),
    (3, 16, 32),
    (16, 33, 64),
    (17, 83, 66),
    (0, 5, 40),
    (4, 0, 8),
    (3, 5, 0),
    (300, 100, 98),
    (401, 960, 576),
]


# Weights and rows that end where memory that may not be read begins.
AT_THE_END_OF_MEMORY = """
import ctypes, mmap
import numpy as np
from layercoop_fast import _C

def at_the_end(rows, columns):
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    count = rows * columns
    return np.frombuffer(memory, np.uint16, count, mmap.PAGESIZE - 2 * count).reshape(rows, columns)

for level in _C.isa_available():
    _C.set_isa(level)
    out = np.empty((5, 17), np.uint16)
    _C.linear_bf16(at_the_end(5, 34), at_the_end(17, 34), at_the_end(1, 17)[0], out)
    assert not out.any()
"""


def core(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_empty(len(x), len(weight))
    _C.linear_bf16(array(x), array(weight), None if bias is None else array(bias), array(out))
    return out


def numbers(shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    rows, outputs, inputs = shape
    return (
        noise(rows, inputs, dtype=dtype),
        noise(outputs, inputs, seed=1, scale=0.1, dtype=dtype),
        noise(outputs, seed=2, dtype=dtype),
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_against_float64(level: str, shape: tuple[int, int, int], *, with_bias: bool) -> None:
    _C.set_num_threads(3)  # so that pieces are really shared
    x, weight, bias = numbers(shape)
    found = core(x, weight, bias if with_bias else None)
    # One rounding, and what sums in fp32 lose: more of a sum whose terms nearly cancel.
    expected = product_reference(x, weight, bias if with_bias else None)
    assert_near(found, expected, relative=2**-7, absolute=1e-4)


def test_a_row_has_the_same_bits_whatever_is_beside_it(level: str) -> None:
    x, weight, bias = numbers((401, 200, 130))
    whole = core(x, weight, bias)
    for threads in (1, 3):
        _C.set_num_threads(threads)
        for rows in (1, 2, 7, 16, 150):
            assert torch.equal(core(x[:rows], weight, bias), whole[:rows])
        assert torch.equal(core(x, weight[48:101], bias[48:101]), whole[:, 48:101])


def test_more_inputs_than_are_widened_at_a_time(level: str) -> None:
    x, weight, _ = numbers((40, 20, 1 << 17))
    assert_near(core(x, weight, None), product_reference(x, weight), relative=2**-7, absolute=0.05)
    assert torch.equal(core(x[20:], weight, None), core(x, weight, None)[20:])


def test_what_is_not_a_number_stays_where_it_is(level: str) -> None:
    x, weight, _ = numbers((20, 33, 64))
    x[3, 5], weight[17, 7] = float("nan"), float("inf")
    found = core(x, weight, None)
    assert found[3].isnan().all()
    assert not found[np.arange(20) != 3][:, np.arange(33) != 17].isnan().any()
    assert not found[np.arange(20) != 3][:, 17].isfinite().any()


def test_nothing_behind_the_arguments_is_read() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END_OF_MEMORY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_arguments() -> None:
    x, weight, bias = numbers((4, 5, 6))
    out = array(x.new_empty(4, 5))
    with pytest.raises(ValueError, match="weight: expected"):
        _C.linear_bf16(array(x), array(noise(5, 7, dtype=torch.bfloat16)), None, out)
    with pytest.raises(ValueError, match="bias: expected"):
        _C.linear_bf16(array(x), array(weight), array(bias[:4]), out)
    with pytest.raises(TypeError, match="weight: expected"):
        _C.linear_bf16(array(x), array(weight.float()), None, out)
    with pytest.raises(ValueError, match="5 columns are an odd number"):
        _C.linear_bf16(array(noise(4, 5, dtype=torch.bfloat16)), array(noise(5, 5, dtype=torch.bfloat16)), None, out)


@pytest.mark.parametrize("slow", [True, False])
def test_the_core_multiplies_bf16_where_torch_is_slow(monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    monkeypatch.setattr(module, "is_slow", lambda dtype: slow)
    by_core: list[tuple[int, ...]] = []
    multiply = _C.linear_bf16
    monkeypatch.setattr(_C, "linear_bf16", lambda x, *rest: (by_core.append(x.shape), multiply(x, *rest)))
    assert core_multiplies(torch.bfloat16) is slow
    assert not core_multiplies(torch.float32)
    for dtype, inputs, tolerance in (
        (torch.float32, 64, 1e-5),
        (torch.bfloat16, 64, 2**-7),
        (torch.bfloat16, 65, 2**-7),
    ):
        x, weight, bias = numbers((20, 30, inputs), dtype)
        for given in (None, bias):
            out = x.new_empty(20, 30)
            assert linear(x, weight, given, out) is out
            assert_near(out, product_reference(x, weight, given), relative=tolerance, absolute=1e-4)
        aside = x.new_empty(30, 20).t()  # not row by row: torch's
        assert_near(linear(x, weight, None, aside), product_reference(x, weight), relative=tolerance, absolute=1e-4)
    assert by_core == ([(20, 64)] * 2 if slow else [])
