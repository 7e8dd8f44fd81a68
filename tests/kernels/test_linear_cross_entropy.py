from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from close import assert_near, noise
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels import linear_cross_entropy as module
from layercoop_fast.kernels.linear_cross_entropy import linear_cross_entropy
from layercoop_fast.kernels.reference.head import linear_cross_entropy_reference

# rows, hidden width, words
SHAPES = [(1, 1, 1), (3, 8, 17), (20, 12, 300), (7, 48, 4099), (1030, 8, 61)]
OPTIONS: list[dict[str, Any]] = [{}, {"scale": 0.25}, {"soft_cap": 5.0}, {"scale": 3.0, "soft_cap": 2.0}]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width, words = shape
    hidden, teacher = noise(rows, width, dtype=dtype), noise(rows, width, dtype=dtype, seed=1)
    weight = noise(words, width, dtype=dtype, seed=2, scale=2 * width**-0.5)
    targets = torch.randint(words, (rows,), generator=torch.Generator().manual_seed(3))
    return hidden, teacher, weight, targets


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(level: str, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    hidden, teacher, weight, targets = inputs(shape)
    bias = noise(shape[2], seed=4)
    found = linear_cross_entropy(hidden, weight, targets, bias=bias, teacher=teacher, **options)
    expected = linear_cross_entropy_reference(
        hidden.double(), weight.double(), targets, bias=bias.double(), teacher=teacher.double(), **options
    )
    assert found.kl is not None
    assert expected.kl is not None
    assert found.nll.dtype == found.kl.dtype == torch.float32
    assert_near(found.nll, expected.nll, relative=1e-5, absolute=1e-5)
    assert_near(found.kl, expected.kl, relative=1e-5, absolute=1e-5)
    alone = linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
    assert torch.equal(alone.nll, found.nll)
    assert alone.kl is None


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_against_cross_entropy_on_float_logits(level: str, shape: tuple[int, int, int]) -> None:
    hidden, teacher, weight, targets = inputs(shape, torch.bfloat16)
    found = linear_cross_entropy(hidden, weight, targets, teacher=teacher)
    logits = torch.nn.functional.linear(hidden, weight).float()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert_near(found.nll, expected, relative=2e-2, absolute=2e-2)
    p = torch.nn.functional.linear(teacher, weight).float().log_softmax(-1)
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), p, reduction="none", log_target=True).sum(-1)
    assert found.kl is not None
    assert_near(found.kl, kl, relative=2e-2, absolute=2e-2)


@pytest.mark.parametrize("words", [1, 5, 64, 299, 300])
def test_any_tile_gives_the_same_losses(monkeypatch: pytest.MonkeyPatch, level: str, words: int) -> None:
    hidden, teacher, weight, targets = inputs((40, 12, 300))
    whole = linear_cross_entropy(hidden, weight, targets, teacher=teacher)
    monkeypatch.setattr(module, "TILE_WORDS", words)
    monkeypatch.setattr(module, "TILE_ROWS", 16)
    tiled = linear_cross_entropy(hidden, weight, targets, teacher=teacher)
    assert whole.kl is not None
    assert tiled.kl is not None
    assert_near(tiled.nll, whole.nll, relative=1e-5, absolute=1e-5)
    assert_near(tiled.kl, whole.kl, relative=1e-5, absolute=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(level: str, dtype: torch.dtype) -> None:
    hidden, teacher, weight, targets = inputs((150, 48, 2500), dtype)
    together = linear_cross_entropy(hidden, weight, targets, teacher=teacher)
    assert together.kl is not None
    for rows in (slice(0, 1), slice(3, 6), slice(20, 137)):
        alone = linear_cross_entropy(hidden[rows], weight, targets[rows], teacher=teacher[rows])
        assert alone.kl is not None
        assert torch.equal(alone.nll, together.nll[rows])
        assert torch.equal(alone.kl, together.kl[rows])


def test_a_student_like_its_teacher_has_no_divergence(level: str) -> None:
    hidden, _, weight, targets = inputs((9, 16, 3001))
    losses = linear_cross_entropy(hidden, weight, targets, teacher=hidden.clone())
    assert losses.kl is not None
    assert torch.equal(losses.kl, torch.zeros(9))


def test_confident_and_broken_rows(level: str) -> None:
    hidden, _, weight, targets = inputs((4, 16, 3001))
    hidden[0] *= 1e3
    hidden[2, 5] = float("nan")
    nll = linear_cross_entropy(hidden, weight, targets).nll
    expected = linear_cross_entropy_reference(hidden.double(), weight.double(), targets).nll
    assert_near(nll, expected, relative=1e-5, absolute=1e-5)
    assert nll[2].isnan()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 2e-3)])
def test_no_rows_and_dtypes_that_the_core_lacks(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, teacher, weight, targets = (
        each.to(dtype) if each.is_floating_point() else each for each in inputs((rows, 8, 17))
    )
    found = linear_cross_entropy(hidden, weight, targets, teacher=teacher)
    expected = linear_cross_entropy_reference(hidden, weight, targets, teacher=teacher)
    assert found.kl is not None
    assert expected.kl is not None
    assert found.nll.dtype == expected.nll.dtype
    assert_near(found.nll, expected.nll, relative=tolerance)
    assert_near(found.kl, expected.kl, relative=tolerance, absolute=tolerance)
    assert linear_cross_entropy(hidden, weight, targets).nll.shape == (rows,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_added_by_torch_are_those_added_by_the_core(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does where the Triton kernel is not to be used, on the CPU."""
    hidden, teacher, weight, targets = inputs((37, 24, 4_500), dtype=dtype)
    bias = noise(len(weight), dtype=dtype, seed=9)
    given: dict[str, Any] = {"teacher": teacher, "bias": bias, "scale": 0.7, "soft_cap": 5.0}
    expected = linear_cross_entropy(hidden, weight, targets, **given)
    monkeypatch.setattr(module, "is_native", lambda tensor: False)
    for rows in (2048, 8):  # several passes over the rows
        monkeypatch.setattr(module, "TILE_ROWS", rows)
        found = module.by_tiles(hidden, weight, targets, **given)
        assert found.kl is not None
        assert expected.kl is not None
        assert_near(found.nll, expected.nll, relative=1e-5)
        assert_near(found.kl, expected.kl, relative=1e-4, absolute=1e-5)


HIDDEN, TEACHER, WEIGHT, TARGETS = inputs((3, 8, 17))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": HIDDEN[0]}, "hidden: expected a contiguous floating-point matrix"),
        ({"weight": WEIGHT[:, :5].contiguous()}, r"weight: expected shape \[17, 8\], got \[17, 5\]"),
        ({"weight": WEIGHT[:0]}, "weight: expected at least one row"),
        ({"weight": WEIGHT.double()}, "weight: expected torch.float32 on cpu, got torch.float64"),
        ({"bias": WEIGHT[0]}, r"bias: expected shape \[17\], got \[8\]"),
        ({"teacher": TEACHER[:2]}, r"teacher: expected shape \[3, 8\], got \[2, 8\]"),
        ({"targets": TARGETS.int()}, r"targets: expected int64 \[3\] on cpu, got torch.int32"),
        ({"targets": torch.tensor([0, 17, 1])}, r"targets: 0\.\.17 are not all in 0\.\.16"),
        ({"targets": torch.tensor([0, -1, 1])}, r"targets: -1\.\.1 are not all in 0\.\.16"),
        ({"soft_cap": 0.0}, "soft_cap: 0.0 is not a positive number"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        linear_cross_entropy(**{"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.zeros(3, np.int64)}, r"targets: .* int64\[4\], got shape \(3,\)"),
        ({"running": np.zeros((4, 2), np.float32)}, r"running: .* float32\[4, 3\], got shape \(4, 2\)"),
        ({"first_token": -1}, "first_token: -1 is below 0"),
        ({"teacher": np.zeros((4, 6), np.float32)}, "teacher and teacher_running: expected both or none"),
    ],
)
def test_bad_arrays(changes: dict[str, Any], message: str) -> None:
    good = {
        "logits": np.zeros((4, 6), np.float32),
        "targets": np.zeros(4, np.int64),
        "first_token": 0,
        "running": np.zeros((4, 3), np.float32),
    }
    with pytest.raises(ValueError, match=message):
        _C.running_loss(**{**good, **changes})
