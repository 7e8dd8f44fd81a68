from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.gather_norm import CONFIGS, WIDEST, launch_norm
from layercoop_fast.kernels.pool import gather_add_norm, gather_norm
from layercoop_fast.kernels.reference.blocks import gather_norm_reference, rms_norm_reference
from layercoop_fast.kernels.rms_norm import add_rms_norm, rms_norm

# pool [S, T, H] and the picked slots: one row, odd widths, a slot twice, none
POOLS = [((1, 1, 1), [0]), ((5, 3, 17), [4, 0, 0]), ((3, 2, 64), [2]), ((2, 7, 1100), [1, 0]), ((3, 2, 8), [])]


def given(shape: tuple[int, int, int], slots: list[int], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    pool, weight = noise(*shape, dtype=dtype, scale=3.0), noise(shape[2], dtype=dtype, seed=1)
    delta = noise(len(slots) * shape[1], shape[2], dtype=dtype, seed=2)
    return [each.to(device) for each in (pool, weight, delta, torch.tensor(slots, dtype=torch.int32))]


@pytest.mark.parametrize("gemma", [False, True], ids=["llama", "gemma"])
@pytest.mark.parametrize(("shape", "slots"), POOLS)
def test_fp32_against_float64(shape, slots, gemma: bool, device: str) -> None:
    pool, weight, delta, picked = given(shape, slots, torch.float32, device)
    _, expected = gather_norm_reference(pool.double(), picked, weight.double(), 1e-5, gemma=gemma)
    assert_near(gather_norm(pool, picked, weight, 1e-5, gemma=gemma), expected, relative=1e-5, absolute=1e-5)
    added = gather_norm_reference(pool.double(), picked, weight.double(), 1e-5, delta.double(), gemma=gemma)
    found = gather_add_norm(pool, picked, delta, weight, 1e-5, gemma=gemma)
    for one, other in zip(found, added, strict=True):
        assert_near(one, other, relative=1e-5, absolute=1e-5)


@pytest.mark.parametrize("gemma", [False, True], ids=["llama", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_round_where_the_models_do(dtype: torch.dtype, gemma: bool, device: str) -> None:
    pool, weight, delta, picked = given((4, 3, 97), [3, 1], dtype, device)
    total, normed = gather_add_norm(pool, picked, delta, weight, 1e-5, gemma=gemma)
    expected_total, _ = gather_norm_reference(pool, picked, weight, 1e-5, delta, gemma=gemma)
    # The interpreter cuts bf16 off where chips and torch round.
    assert_near(total, expected_total, relative=torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
    expected = rms_norm_reference(total, weight, 1e-5, gemma=gemma)
    assert_near(normed, expected, relative=3 * torch.finfo(dtype).eps, absolute=1e-2)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration_without_slots(config, device: str) -> None:
    x, weight = noise(3, 40).to(device), noise(40, seed=1).to(device)
    out = torch.empty_like(x)
    launch_norm(x, weight, 1e-6, out, config=config)
    assert_near(out, rms_norm_reference(x.double(), weight.double(), 1e-6), relative=1e-5, absolute=1e-6)


def test_states_in_a_row(device: str) -> None:
    x, delta, weight = (noise(*shape, seed=len(shape)).half().to(device) for shape in ((3, 16), (3, 16), (16,)))
    assert_near(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), relative=2e-3)
    total, normed = add_rms_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, x + delta)
    assert_near(normed, rms_norm_reference(total, weight, 1e-5), relative=2e-3)


@pytest.mark.parametrize("gemma", [False, True], ids=["llama", "gemma"])
def test_what_is_not_kept_adds_nothing_whatever_it_is(gemma: bool, device: str) -> None:
    x, delta, weight = noise(4, 24).to(device), noise(4, 24, seed=1).to(device), noise(24, seed=2).to(device)
    keep = torch.tensor([0, 1, 0, 7], dtype=torch.int32, device=device)
    delta[0], delta[2, 3] = torch.inf, torch.nan
    expected = torch.where(keep[:, None] != 0, x + delta, x)
    total, normed = add_rms_norm(x, delta, weight, 1e-5, keep=keep, gemma=gemma)
    assert torch.equal(total, expected)
    assert_near(normed, rms_norm_reference(expected, weight, 1e-5, gemma=gemma), relative=1e-5, absolute=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.tensor([0.0])}, r"slots: expected contiguous int32 or int64 \[1\]"),
        ({"pool": torch.zeros(3, 16)}, r"pool: expected contiguous \[slots, tokens, hidden\], got \[3, 16\]"),
        ({"weight": torch.zeros(3)}, r"weight: expected shape \[16\], got \[3\]"),
    ],
)
def test_bad_arguments(change: dict[str, torch.Tensor], message: str, device: str) -> None:
    pool, weight, _, picked = given((2, 1, 16), [1], torch.float32, device)
    arguments = {"pool": pool, "slots": picked, "weight": weight} | change
    with pytest.raises(RequestError, match=message):
        gather_norm(**{name: each.to(device) for name, each in arguments.items()}, eps=1e-5)


def test_rows_that_registers_do_not_hold_are_refused(device: str) -> None:
    x = torch.zeros(1, WIDEST + 1, device=device)
    with pytest.raises(RequestError, match="states of 32769 numbers are wider than the 32768 that a GPU kernel norms"):
        rms_norm(x, x[0], 1e-5)
