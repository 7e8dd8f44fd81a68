"""The start-up check of kernels, in Triton's interpreter or on the GPU that is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
from close import assert_near, noise
from random_networks import random_networks

from layercoop_fast import enumerate_masks
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels import checks
from layercoop_fast.kernels.gpu import cases, gather_norm
from layercoop_fast.kernels.gpu import linear_cross_entropy as head_file
from layercoop_fast.kernels.gpu import swiglu as swiglu_file
from layercoop_fast.kernels.gpu.frame import recorded
from layercoop_fast.kernels.linear_cross_entropy import linear_cross_entropy as head_loss
from layercoop_fast.kernels.reference.blocks import rms_norm_reference, swiglu_reference
from layercoop_fast.kernels.reference.head import linear_cross_entropy_reference
from layercoop_fast.kernels.rms_norm import rms_norm
from layercoop_fast.kernels.surrogate import marginals, predict
from layercoop_fast.kernels.swiglu import swiglu

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict is known, and none is left behind."""
    monkeypatch.setattr(checks, "_checks", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kernel_is_right_here(dtype: torch.dtype, device: str) -> None:
    found = checks.checks_of(torch.device(device), dtype)
    assert [check.operation for check in found] == list(checks.OPERATIONS)
    for check in found:
        assert check.problem is None, check
        assert check.difference is not None
        assert check.difference <= check.allowed / 2
    assert set(checks.kernels_used(torch.device(device), dtype).values()) == {"triton"}


def test_every_operation_has_a_case_and_a_tolerance() -> None:
    assert cases.CASES.keys() == set(checks.OPERATIONS)
    assert cases.TOLERANCE.keys() == {torch.float32, torch.bfloat16, torch.float16}


def test_a_kernel_that_is_wrong_is_replaced_by_torch_with_one_line(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that operation, only in that dtype, and the warning comes once."""

    def wrong(gate_up: torch.Tensor, out: torch.Tensor, *, gelu: bool) -> None:
        out.copy_(gate_up[:, : out.shape[1]])

    monkeypatch.setattr(cases, "launch_gated", wrong)
    monkeypatch.setattr(swiglu_file, "launch_gated", wrong)
    rows = noise(3, 8).to(device)
    with pytest.warns(UserWarning, match=r"^gated: the Triton kernel is not used on .* in float32.*: off by .*e[-+]"):
        found = swiglu(rows)
    assert_near(found, swiglu_reference(rows), relative=1e-6)
    assert_near(swiglu(rows), swiglu_reference(rows), relative=1e-6)
    weight = torch.ones(8, device=device)
    assert_near(rms_norm(rows, weight, 1e-5), rms_norm_reference(rows, weight, 1e-5), relative=1e-5)
    assert checks.kernels_used(rows.device, rows.dtype) == {
        "norm": "triton", "scatter_residual": "triton", "rotary": "triton", "gated": "torch",
        "linear_cross_entropy": "triton",
    }  # fmt: skip


def test_a_kernel_that_raises_is_replaced_too(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object, **__: object) -> None:
        raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(cases, "launch_head_loss", raising)
    monkeypatch.setattr(head_file, "launch_head_loss", raising)
    hidden, weight = noise(5, 16).to(device), noise(99, 16, seed=1).to(device)
    targets = torch.tensor([0, 98, 4, 4, 50], device=device)
    with pytest.warns(UserWarning, match="linear_cross_entropy: .* OutOfResources: out of resource: shared memory"):
        found = head_loss(hidden, weight, targets)
    assert_near(found.nll, linear_cross_entropy_reference(hidden, weight, targets).nll, relative=1e-5)


def test_numbers_that_are_none_are_wrong(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(pool: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, **_: object) -> None:
        out.fill_(torch.nan)

    monkeypatch.setattr(cases, "launch_norm", nothing)
    monkeypatch.setattr(gather_norm, "launch_norm", nothing)
    x, weight = noise(3, 8).to(device), torch.ones(8, device=device)
    with pytest.warns(UserWarning, match=r"norm: .* off by inf"):
        found = rms_norm(x, weight, 1e-5)
    assert_near(found, rms_norm_reference(x, weight, 1e-5), relative=1e-5)


def test_networks_are_computed_by_the_core_instead(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    for name in ("launch_logits", "AllMasks"):
        monkeypatch.setattr(cases, name, raising)
    networks = random_networks(6, 2, 8)
    masks = (np.arange(64)[:, None] >> np.arange(6) & 1).astype(bool)
    with pytest.warns(UserWarning, match="surrogate: .* no kernel image"):
        found = predict(networks, masks, device="cuda")
    np.testing.assert_array_equal(found, predict(networks, masks))
    np.testing.assert_array_equal(marginals(networks, masks, "cuda"), marginals(networks, masks))
    with pytest.warns(UserWarning, match="enumeration: .* no kernel image"):
        sums = enumerate_masks(networks, device="cuda")
    np.testing.assert_array_equal(sums.means, enumerate_masks(networks).means)
    with pytest.raises(RequestError, match=r"38 players are too many for the CPU .* no kernel image .* shapley_values"):
        enumerate_masks(random_networks(38, 1, 8), device="cuda")


def test_missing_memory_is_no_verdict(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setitem(cases.CASES, "norm", full)
        with pytest.raises(torch.OutOfMemoryError):
            checks.sound("norm", torch.device(device))
    assert checks.sound("norm", torch.device(device))


def test_nothing_is_checked_while_launches_are_recorded(device: str) -> None:
    with recorded() as launches:
        swiglu(noise(3, 8).to(device))
    assert len(launches) == 1
