from __future__ import annotations

import numpy as np
import pytest
import torch
from close import assert_near, assert_within_a_rounding, noise
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.reference.blocks import (
    add_branch_reference,
    rms_norm_reference,
    rms_norm_slopes_reference,
)
from layercoop_fast.kernels.rms_norm import add_branch, add_rms_norm, rms_norm, rms_norm_slopes

SHAPES = [(1, 1), (0, 5), (3, 16), (5, 17), (7, 63), (2, 64), (3, 65), (13, 576), (1201, 101)]
EPS = 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(level: str, shape: tuple[int, int]) -> None:
    x, delta, weight = noise(*shape), noise(*shape, seed=1), noise(shape[1], seed=2)
    assert_near(rms_norm(x, weight, EPS), rms_norm_reference(x.double(), weight.double(), EPS), relative=1e-6)
    total, out = add_rms_norm(x, delta, weight, EPS)
    assert torch.equal(total, x + delta)
    assert_near(out, rms_norm_reference((x + delta).double(), weight.double(), EPS), relative=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_rounds_where_hugging_face_does(level: str, shape: tuple[int, int]) -> None:
    dtype = torch.bfloat16
    x, delta = noise(*shape, dtype=dtype), noise(*shape, dtype=dtype, seed=1)
    module = LlamaRMSNorm(shape[1], eps=EPS).to(dtype)
    module.weight.data = noise(shape[1], dtype=dtype, seed=2)
    with torch.inference_mode():
        assert_within_a_rounding(rms_norm(x, module.weight, EPS), module(x))
        total, out = add_rms_norm(x, delta, module.weight, EPS)
        assert torch.equal(total, x + delta)
        assert_within_a_rounding(out, module(x + delta))
        assert torch.equal(module(x), rms_norm_reference(x, module.weight, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_slopes(level: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, slope, base = (noise(*shape, seed=seed, dtype=dtype) for seed in (0, 1, 3))
    weight = noise(shape[1], seed=2, dtype=dtype)
    exact = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = torch.autograd.grad(rms_norm_reference(*exact, EPS), exact, slope.double())
    relative, absolute = (1e-5, 2e-5) if dtype == torch.float32 else (2**-7, 2**-7)
    for added in (None, base):
        found = rms_norm_slopes(slope, x, weight, EPS, base=added)
        of_x = expected[0] if added is None else expected[0] + added.double()
        assert_near(found[0], of_x, relative=relative, absolute=absolute)
        assert_near(found[1], expected[1], relative=relative, absolute=absolute)
        same = rms_norm_slopes_reference(
            slope.double(), x.double(), weight.double(), EPS, base=None if added is None else added.double()
        )
        assert_near(same[0], of_x, relative=1e-9, absolute=1e-9)
        assert_near(same[1], expected[1], relative=1e-9, absolute=1e-9)


def test_slopes_do_not_depend_on_threads_or_other_rows(level: str) -> None:
    x, slope, weight = noise(300, 200), noise(300, 200, seed=1), noise(200, seed=2)
    of_x, of_weight = rms_norm_slopes(slope, x, weight, EPS)
    assert torch.equal(rms_norm_slopes(slope[7:9].contiguous(), x[7:9].contiguous(), weight, EPS)[0], of_x[7:9])
    _C.set_num_threads(1)
    assert torch.equal(rms_norm_slopes(slope, x, weight, EPS)[1], of_weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_gemmas_form(level: str, shape: tuple[int, int]) -> None:
    x, weight = noise(*shape), noise(shape[1], seed=2)
    expected = rms_norm_reference(x.double(), weight.double(), EPS, gemma=True)
    assert_near(rms_norm(x, weight, EPS, gemma=True), expected, relative=1e-6, absolute=1e-6)
    x, weight = x.bfloat16(), weight.bfloat16()
    module = Gemma3RMSNorm(shape[1], eps=EPS).to(torch.bfloat16)
    module.weight.data = weight
    with torch.inference_mode():
        assert_within_a_rounding(rms_norm(x, weight, EPS, gemma=True), module(x))
        assert torch.equal(module(x), rms_norm_reference(x, weight, EPS, gemma=True))


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_branch_is_normed_and_scaled_and_added(
    level: str, shape: tuple[int, int], factor: float, gemma: bool
) -> None:
    x, delta, after = noise(*shape), noise(*shape, seed=1), noise(shape[1], seed=2)
    for weight in (None, after):
        wide = {"after": None if weight is None else weight.double(), "eps": EPS, "gemma": gemma, "factor": factor}
        expected = add_branch_reference(x.double(), delta.double(), **wide)
        found = add_branch(x, delta, after=weight, eps=EPS, gemma=gemma, factor=factor)
        assert_near(found, expected, relative=1e-6, absolute=1e-6)
        options = {"after": None if weight is None else weight.bfloat16(), "eps": EPS, "gemma": gemma, "factor": factor}
        few = add_branch(x.bfloat16(), delta.bfloat16(), **options)
        # Norm, product and sum are each rounded, and a sum may cancel.
        assert_near(
            few, add_branch_reference(x.bfloat16(), delta.bfloat16(), **options), relative=2**-7, absolute=2**-6
        )
    total = delta.clone()
    assert torch.equal(add_branch(x, total, after=after, eps=EPS, gemma=gemma, factor=factor, total=total), found)
    assert torch.equal(add_branch(x, delta), x + delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(level: str, dtype: torch.dtype) -> None:
    x, weight = noise(997, 131, dtype=dtype), noise(131, dtype=dtype, seed=1)
    together = rms_norm(x, weight, EPS)
    for row in (0, 500, 996):
        assert torch.equal(rms_norm(x[row : row + 1].contiguous(), weight, EPS)[0], together[row])


def test_outputs_may_be_the_inputs(level: str) -> None:
    x, delta, weight = noise(9, 33), noise(9, 33, seed=1), noise(33, seed=2)
    total, out = add_rms_norm(x, delta, weight, EPS)
    x2, delta2 = x.clone(), delta.clone()
    add_rms_norm(x2, delta2, weight, EPS, out=delta2, total=x2)
    assert torch.equal(x2, total)
    assert torch.equal(delta2, out)


def test_infinity_and_nan_stay_in_their_row(level: str) -> None:
    x = noise(4, 20)
    x[1, 3], x[2, 7] = float("nan"), float("inf")
    out = rms_norm(x, torch.ones(20), EPS)
    assert_near(out, rms_norm_reference(x.double(), torch.ones(20).double(), EPS), relative=1e-6)
    assert out[[0, 3]].isfinite().all()


def test_other_dtypes_take_the_oracle() -> None:
    x, weight = noise(3, 7).double(), noise(7, seed=1).double()
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm_reference(x, weight, EPS))
    total, out = add_rms_norm(x, x, weight, EPS)
    assert torch.equal(out, rms_norm_reference(total, weight, EPS))
    branch = {"after": weight, "eps": EPS, "gemma": True, "factor": 0.3}
    assert torch.equal(add_branch(x, x, **branch), add_branch_reference(x, x, **branch))


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (noise(3), noise(3), "x: expected a contiguous floating-point matrix"),
        (noise(4, 6)[:, ::2], noise(3), "x: expected a contiguous"),
        (
            torch.ones(2, 2, dtype=torch.int64),
            noise(2),
            "x: expected a contiguous floating-point matrix, got torch.int64",
        ),
        (noise(3, 4), noise(5), r"weight: expected shape \[4\], got \[5\]"),
        (noise(3, 4), noise(4).double(), "weight: expected torch.float32 on cpu"),
    ],
)
def test_bad_tensors(x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        rms_norm(x, weight, EPS)


GOOD = np.ones((4, 6), dtype=np.float32)
ROW = np.ones(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], ROW, EPS, GOOD), TypeError, "x: expected a numpy array of float32, or uint16 .* got list"),
        ((GOOD.astype(np.float64), ROW, EPS, GOOD), TypeError, "x: .* got float64"),
        ((GOOD[0], ROW, EPS, GOOD), ValueError, "x: expected 2 dimensions, got 1"),
        ((GOOD, ROW.astype(np.uint16), EPS, GOOD), TypeError, r"weight: .* float32\[6\], got dtype uint16"),
        ((GOOD, ROW[:5], EPS, GOOD), ValueError, r"weight: .* got shape \(5,\)"),
        ((np.asfortranarray(GOOD), ROW, EPS, GOOD), ValueError, "x: .* got another memory layout"),
        ((GOOD, ROW, EPS, GOOD[:3]), ValueError, r"out: .* float32\[4, 6\], got shape \(3, 6\)"),
        ((GOOD, ROW, EPS, GOOD.copy(), GOOD), ValueError, "delta and sum: expected both or none"),
        ((GOOD, None, EPS, GOOD.copy()), ValueError, "weight and out: expected both or none"),
        ((GOOD, ROW, EPS, GOOD.copy(), GOOD, GOOD.copy(), ROW[:5]), ValueError, r"after: .* got shape \(5,\)"),
        ((GOOD[:, :0].copy(), ROW[:0], EPS, GOOD[:, :0].copy()), ValueError, "columns of x: 0 is below 1"),
    ],
)
def test_bad_arrays(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _C.rms_norm(*arguments)  # type: ignore[arg-type]


def test_a_read_only_output_is_refused() -> None:
    out = GOOD.copy()
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out: expected an array that can be written"):
        _C.rms_norm(GOOD, ROW, EPS, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_that_are_not_kept_get_nothing_added(dtype: torch.dtype) -> None:
    x, delta, weight = noise(3, 24, dtype=dtype), noise(3, 24, dtype=dtype, seed=1), noise(24, dtype=dtype, seed=2)
    delta[1] = torch.inf
    keep = torch.tensor([1, 0, 2], dtype=torch.int32)
    total, normed = add_rms_norm(x, delta, weight, 1e-5, keep=keep)
    assert torch.equal(total, torch.where(keep[:, None] != 0, x + delta, x))
    assert torch.equal(normed, rms_norm(total, weight, 1e-5))
    with pytest.raises(RequestError, match=r"keep: expected contiguous int32 or int64 \[3\]"):
        add_rms_norm(x, delta, weight, 1e-5, keep=keep[:2])
