from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels import rms_norm as kernels
from layercoop_fast.kernels.gpu.gather_norm import (
    CONFIGS,
    gather_add_norm,
    gather_norm,
    gather_norm_reference,
    launch_norm,
    norm_reference,
)
from layercoop_fast.kernels.memory import through_interpreter

# pool [S, T, H] and the picked slots: one row, odd widths, a slot twice, none
POOLS = [((1, 1, 1), [0]), ((5, 3, 17), [4, 0, 0]), ((3, 2, 64), [2]), ((2, 7, 1100), [1, 0]), ((3, 2, 8), [])]
KINDS = ["rms", "rms_gemma", "layer"]


def given(shape: tuple[int, int, int], slots: list[int], dtype: torch.dtype, device: str, kind: str = "rms"):
    pool, weight = noise(*shape, dtype=dtype, scale=3.0), noise(shape[2], dtype=dtype, seed=1)
    delta = noise(len(slots) * shape[1], shape[2], dtype=dtype, seed=2)
    bias = noise(shape[2], dtype=dtype, seed=3) if kind == "layer" else None
    moved = [None if each is None else each.to(device) for each in (pool, weight, delta, bias)]
    return *moved, torch.tensor(slots, dtype=torch.int32, device=device)


def double(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "slots"), POOLS)
def test_fp32_against_float64(shape, slots, kind: str, device: str) -> None:
    pool, weight, delta, bias, picked = given(shape, slots, torch.float32, device, kind)
    _, expected = gather_norm_reference(pool.double(), picked, weight.double(), double(bias), 1e-5, kind)
    assert_near(gather_norm(pool, picked, weight, bias, 1e-5, kind), expected, relative=1e-5, absolute=1e-5)
    added = gather_norm_reference(pool.double(), picked, weight.double(), double(bias), 1e-5, kind, delta.double())
    found = gather_add_norm(pool, picked, delta, weight, bias, 1e-5, kind)
    for one, other in zip(found, added, strict=True):
        assert_near(one, other, relative=1e-5, absolute=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_round_where_the_models_do(dtype: torch.dtype, kind: str, device: str) -> None:
    pool, weight, delta, bias, picked = given((4, 3, 97), [3, 1], dtype, device, kind)
    total, normed = gather_add_norm(pool, picked, delta, weight, bias, 1e-5, kind)
    expected_total, _ = gather_norm_reference(pool, picked, weight, bias, 1e-5, kind, delta)
    # The interpreter cuts bf16 off where chips and torch round.
    assert_near(total, expected_total, relative=torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
    assert_near(
        normed, norm_reference(total, weight, bias, 1e-5, kind), relative=3 * torch.finfo(dtype).eps, absolute=1e-2
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration_without_slots(config, device: str) -> None:
    x, weight = noise(3, 40).to(device), noise(40, seed=1).to(device)
    out = torch.empty_like(x)
    launch_norm(x, weight, 1e-6, out, config=config)
    assert_near(out, kernels.rms_norm_reference(x.double(), weight.double(), 1e-6), relative=1e-5, absolute=1e-6)


def test_the_kernel_of_a_device_is_found(device: str) -> None:
    x, delta, weight = (noise(*shape, seed=len(shape)).half().to(device) for shape in ((3, 16), (3, 16), (16,)))
    with through_interpreter():
        assert_near(kernels.rms_norm(x, weight, 1e-5), kernels.rms_norm_reference(x, weight, 1e-5), relative=2e-3)
        total, normed = kernels.add_rms_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, x + delta)
    assert_near(normed, kernels.rms_norm_reference(total, weight, 1e-5), relative=2e-3)


def test_torch_compile_traces_through(device: str) -> None:
    pool, weight, delta, _, picked = given((4, 3, 16), [2, 2], torch.float32, device)
    torch.library.opcheck(
        gather_norm, (pool, picked, weight, None, 1e-5), test_utils=("test_schema", "test_faketensor")
    )
    torch.library.opcheck(
        gather_add_norm, (pool, picked, delta, weight, None, 1e-5), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "batch"}, "kind: batch is not one of rms, rms_gemma, layer"),
        ({"bias": True}, "bias: a norm of kind rms has none"),
        ({"slots": torch.tensor([0.0])}, r"slots: expected contiguous int32 or int64 \[1\]"),
        ({"pool": torch.zeros(3, 16)}, r"pool: expected contiguous \[slots, tokens, hidden\], got \[3, 16\]"),
        ({"weight": torch.zeros(3)}, r"weight: expected shape \[16\], got \[3\]"),
    ],
)
def test_bad_arguments(change: dict, message: str, device: str) -> None:
    pool, weight, _, _, picked = given((2, 1, 16), [1], torch.float32, device)
    arguments = {"pool": pool, "slots": picked, "weight": weight, "kind": "rms"} | change
    arguments = {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in arguments.items()}
    bias = weight if arguments.get("bias") else None
    with pytest.raises(RequestError, match=message):
        gather_norm(arguments["pool"], arguments["slots"], arguments["weight"], bias, 1e-5, arguments["kind"])
