from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.swiglu import CONFIGS, launch_gated
from layercoop_fast.kernels.reference.blocks import geglu_reference, swiglu_reference
from layercoop_fast.kernels.swiglu import geglu, swiglu

OPERATIONS = [pytest.param(swiglu, swiglu_reference, id="swiglu"), pytest.param(geglu, geglu_reference, id="geglu")]
SHAPES = [(1, 1), (0, 4), (3, 16), (5, 17), (2, 2500), (67, 97)]


@pytest.mark.parametrize(("operation", "reference"), OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(operation, reference, shape, device: str) -> None:
    gate_up = noise(shape[0], 2 * shape[1], scale=4.0).to(device)
    assert_near(operation(gate_up), reference(gate_up.double()), relative=1e-5, absolute=1e-6)


@pytest.mark.parametrize(("operation", "reference"), OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_round_where_torch_does(operation, reference, dtype: torch.dtype, device: str) -> None:
    gate_up = noise(5, 2 * 97, scale=4.0, dtype=dtype).to(device)
    # The activation is rounded once more on the way: a rounding there may grow to two in the product.
    assert_near(operation(gate_up), reference(gate_up), relative=2 * torch.finfo(dtype).eps, absolute=1e-5)


@pytest.mark.parametrize(("operation", "reference"), OPERATIONS)
def test_gates_at_the_ends_of_fp32(operation, reference, device: str) -> None:
    gate = torch.tensor([0.0, -0.0, 1e-30, 87.0, -87.0, 103.0, -103.0, 1e4, -1e4, float("nan")])
    gate_up = torch.stack([gate, torch.ones_like(gate)], dim=1).to(device)
    # Below -87, silu is smaller than any normal number: an absolute comparison.
    assert_near(operation(gate_up), reference(gate_up.double()), relative=1e-5, absolute=1e-30)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    gate_up = noise(3, 2 * 700).to(device)
    out = torch.empty(3, 700, device=device)
    launch_gated(gate_up, out, gelu=False, config=config)
    assert_near(out, swiglu_reference(gate_up.double()), relative=1e-5, absolute=1e-6)


def test_bad_arguments(device: str) -> None:
    with pytest.raises(RequestError, match="gate_up: 3 columns are not a gate and an up of one width"):
        swiglu(noise(2, 3).to(device))
