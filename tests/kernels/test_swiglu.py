from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from close import assert_near, assert_within_a_rounding, noise

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.reference.blocks import geglu_reference, swiglu_reference, swiglu_slopes_reference
from layercoop_fast.kernels.swiglu import geglu, swiglu, swiglu_slopes

Gate = Callable[[torch.Tensor], torch.Tensor]
SHAPES = [(1, 1), (0, 4), (3, 16), (5, 17), (2, 1536), (701, 97)]


GATES = [(swiglu, swiglu_reference), (geglu, geglu_reference)]


@pytest.mark.parametrize(("gate", "reference"), GATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(level: str, gate: Gate, reference: Gate, shape: tuple[int, int]) -> None:
    gate_up = noise(shape[0], 2 * shape[1], scale=4.0)
    # Where GELU is near 0 it is a difference of numbers near 1 in torch's formula: an absolute comparison there.
    absolute = 0.0 if gate is swiglu else 1e-6
    assert_near(gate(gate_up), reference(gate_up.double()), relative=2e-6, absolute=absolute)


@pytest.mark.parametrize(("gate", "reference"), GATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_rounds_where_torch_does(level: str, gate: Gate, reference: Gate, shape: tuple[int, int]) -> None:
    gate_up = noise(shape[0], 2 * shape[1], scale=4.0, dtype=torch.bfloat16)
    # The activation is rounded once more on the way: a rounding there may grow to two in the product.
    absolute = 0.0 if gate is swiglu else 1e-5
    assert_near(gate(gate_up), reference(gate_up), relative=2**-7, absolute=absolute)
    if gate is swiglu:
        ones = torch.cat([gate_up[:, : shape[1]], torch.ones_like(gate_up[:, : shape[1]])], dim=1)
        assert_within_a_rounding(swiglu(ones), swiglu_reference(ones))


def test_gates_at_the_ends_of_fp32(level: str) -> None:
    gate = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 87.0, -87.0, 103.0, -103.0, 1e4, -1e4, 3e38, -3e38])
    gate = torch.cat([gate, torch.tensor([float("inf"), float("nan")])])
    gate_up = torch.stack([gate, torch.ones_like(gate)], dim=1)
    # Below -87, silu is smaller than any normal number: an absolute comparison.
    assert_near(swiglu(gate_up), swiglu_reference(gate_up.double()), relative=1e-6, absolute=1e-35)
    finite = gate_up[gate.abs() < 1e9]  # torch makes 0 times infinity of what lies further below
    assert_near(geglu(finite), geglu_reference(finite.double()), relative=1e-6, absolute=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_slopes(level: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = noise(shape[0], 2 * shape[1], scale=4.0, dtype=dtype)
    slope = noise(*shape, seed=1, dtype=dtype)
    found = swiglu_slopes(slope, gate_up)
    relative, absolute = (2e-6, 2e-6) if dtype == torch.float32 else (2**-7, 1e-5)
    assert_near(found, swiglu_slopes_reference(slope.double(), gate_up.double()), relative=relative, absolute=absolute)
    if dtype == torch.float32:
        given = gate_up.double().requires_grad_()
        (expected,) = torch.autograd.grad(swiglu_reference(given), given, slope.double())
        assert_near(swiglu_slopes_reference(slope.double(), gate_up.double()), expected, relative=1e-12, absolute=1e-12)


def test_slopes_at_the_ends_of_fp32(level: str) -> None:
    gate = torch.tensor([0.0, -0.0, 1e-30, 87.0, -87.0, 103.0, -103.0, 1e4, -1e4, 3e38, -3e38, float("nan")])
    gate_up = torch.stack([gate, torch.ones_like(gate)], dim=1)
    slope = torch.ones(len(gate), 1)
    expected = swiglu_slopes_reference(slope.double(), gate_up.double())
    assert_near(swiglu_slopes(slope, gate_up), expected, relative=1e-6, absolute=1e-35)


def test_other_dtypes_take_the_oracle() -> None:
    gate_up = noise(3, 8).double()
    slope = noise(3, 4).double()
    assert torch.equal(swiglu_slopes(slope, gate_up), swiglu_slopes_reference(slope, gate_up))
    assert torch.equal(swiglu(gate_up), swiglu_reference(gate_up))
    assert torch.equal(geglu(gate_up), geglu_reference(gate_up))


def test_bad_arguments() -> None:
    with pytest.raises(RequestError, match="gate_up: 3 columns are not a gate and an up of one width"):
        swiglu(noise(2, 3))
    with pytest.raises(RequestError, match=r"out: expected shape \[2, 2\], got \[2, 4\]"):
        swiglu(noise(2, 4), out=noise(2, 4))
    with pytest.raises(RequestError, match=r"slope: expected shape \[2, 2\], got \[2, 4\]"):
        swiglu_slopes(noise(2, 4), noise(2, 4))
    with pytest.raises(ValueError, match="gate_up: 3 columns are an odd number"):
        _C.swiglu(np.ones((2, 3), dtype=np.float32), np.ones((2, 1), dtype=np.float32))
