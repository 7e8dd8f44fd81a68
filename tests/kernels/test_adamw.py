from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from close import assert_near, noise

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.adamw import Moments, adamw_, norm_of_all

BETAS = (0.9, 0.95)
RATE, FACTOR = 3e-3, 0.7


def steps(weight: torch.Tensor, count: int = 4) -> Moments:
    """Take some steps with a weight; the gradients are a parameter's of the same values, whatever the dtype."""
    moments = Moments.of(weight)
    for step in range(count):
        adamw_(weight, gradient_of(weight, step), moments, RATE, factor=FACTOR, betas=BETAS)
    return moments


def gradient_of(weight: torch.Tensor, step: int) -> torch.Tensor:
    return noise(*weight.shape, dtype=torch.bfloat16, seed=10 + step, scale=0.1 * step).to(weight.dtype)


def torchs(weight: torch.Tensor, count: int = 4) -> torch.Tensor:
    """The same by torch's optimiser in float64."""
    exact = torch.nn.Parameter(weight.double())
    optimiser = torch.optim.AdamW([exact], lr=RATE, betas=BETAS, eps=1e-8, weight_decay=0.0)
    for step in range(count):
        exact.grad = gradient_of(weight, step).double() * FACTOR
        optimiser.step()
    return exact.detach()


@pytest.mark.parametrize("shape", [(0,), (1,), (17, 3), (2, 3, 5), (1 << 16, 1), (70001,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_are_torchs(level: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = noise(*shape, dtype=dtype)
    expected = torchs(weight)
    moments = steps(weight)
    assert moments.steps == 4
    assert_near(moments.value, expected, relative=1e-6, absolute=1e-7)
    assert torch.equal(weight, moments.value.to(dtype)), "the weight is the rounded value"
    assert (moments.value.data_ptr() == weight.data_ptr()) == (dtype != torch.bfloat16) or not weight.numel()


def test_a_weight_that_does_not_lie_in_one_piece(level: str) -> None:
    weight = noise(6, 10, dtype=torch.bfloat16).t()
    expected = torchs(weight)
    assert_near(steps(weight).value, expected, relative=1e-6, absolute=1e-7)
    assert torch.equal(weight, expected.bfloat16())


def test_a_gradient_of_another_shape_is_refused() -> None:
    weight = noise(4, 3)
    with pytest.raises(RequestError, match=r"gradient: expected shape \[4, 3\], got \[3, 4\]"):
        adamw_(weight, noise(3, 4), Moments.of(weight), RATE, factor=1.0, betas=BETAS)


def test_bad_arrays() -> None:
    gradient, value, first, second = np.zeros((4, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"betas: 1\.0* is not in"):
        _C.adamw(gradient, value, first, second, RATE, 1.0, 0.9, 1e-8, 1, 1.0)
    with pytest.raises(ValueError, match="steps: 0 is below 1"):
        _C.adamw(gradient, value, first, second, RATE, 0.9, 0.9, 1e-8, 0, 1.0)
    with pytest.raises(ValueError, match="second: expected"):
        _C.adamw(gradient, value, first, second[:4], RATE, 0.9, 0.9, 1e-8, 1, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_norm_of_all(level: str, dtype: torch.dtype) -> None:
    tensors = [noise(*shape, dtype=dtype, seed=len(shape)) for shape in ((0,), (5,), (70, 300), (3, 4097, 2))]
    tensors.append(tensors[2].t())
    expected = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
    assert norm_of_all(tensors) == pytest.approx(expected, rel=1e-6)
    assert norm_of_all(reversed(tensors[:4])) == pytest.approx(norm_of_all(tensors[:4]), rel=1e-12)
    for bad in (math.nan, math.inf):
        tensors[2][-1, -1] = bad
        assert not math.isfinite(norm_of_all(tensors))
    assert norm_of_all([]) == 0.0
