from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu import linear_cross_entropy as file
from layercoop_fast.kernels.gpu.frame import Config
from layercoop_fast.kernels.gpu.linear_cross_entropy import CONFIGS, launch_head_loss
from layercoop_fast.kernels.linear_cross_entropy import linear_cross_entropy
from layercoop_fast.kernels.reference.head import TokenLosses, linear_cross_entropy_reference

# rows, hidden width, words: one of each, primes, several tiles either way, none
SHAPES = [(1, 1, 1), (5, 17, 131), (67, 32, 64), (3, 8, 333), (0, 8, 5)]


def given(rows: int, width: int, words: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    hidden, teacher = (noise(rows, width, dtype=dtype, seed=seed) for seed in (0, 1))
    weight, bias = noise(words, width, dtype=dtype, seed=2), noise(words, dtype=dtype, seed=3)
    targets = torch.randint(words, (rows,), generator=torch.Generator().manual_seed(4))
    return [each.to(device) for each in (hidden, teacher, weight, bias, targets)]


def expected_of(hidden, teacher, weight, bias, targets, **options):
    bias = None if bias is None else bias.double()
    return linear_cross_entropy_reference(
        hidden.double(), weight.double(), targets, bias=bias, teacher=teacher.double(), **options
    )


def assert_both(found: TokenLosses, expected: TokenLosses) -> None:
    assert_near(found.nll, expected.nll, relative=1e-5, absolute=2e-5)
    assert_near(found.kl, expected.kl, relative=1e-4, absolute=2e-5)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3, "soft_cap": 2.0}], ids=["plain", "capped"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(shape, options: dict[str, float], device: str) -> None:
    hidden, teacher, weight, bias, targets = given(*shape, torch.float32, device)
    expected = expected_of(hidden, teacher, weight, bias, targets, **options)
    found = linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
    assert found.nll.dtype == torch.float32
    assert found.kl is None
    assert_near(found.nll, expected.nll, relative=1e-5, absolute=2e-5)
    assert_both(linear_cross_entropy(hidden, weight, targets, bias=bias, teacher=teacher, **options), expected)


def test_products_of_fp16_are_exact(device: str) -> None:
    hidden, teacher, weight, bias, targets = given(3, 17, 30, torch.float16, device)
    expected = expected_of(hidden, teacher, weight, bias, targets)
    nll, kl = (torch.empty(3, device=device) for _ in range(2))
    options = {"bias": bias, "teacher": teacher, "kl": kl}
    launch_head_loss(hidden, weight, targets, nll, **options, config=CONFIGS["small"])
    assert_both(TokenLosses(nll, kl), expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config: Config, device: str) -> None:
    hidden, teacher, weight, _, targets = given(70, 8, 140, torch.float32, device)
    expected = expected_of(hidden, teacher, weight, None, targets)
    nll, kl = (torch.empty(70, device=device) for _ in range(2))
    launch_head_loss(hidden, weight, targets, nll, teacher=teacher, kl=kl, config=config)
    assert_both(TokenLosses(nll, kl), expected)


def test_more_rows_than_a_launch_takes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MOST_ROWS", 8)
    hidden, teacher, weight, bias, targets = given(21, 8, 20, torch.float32, device)
    expected = expected_of(hidden, teacher, weight, bias, targets)
    assert_both(linear_cross_entropy(hidden, weight, targets, bias=bias, teacher=teacher), expected)


def test_logits_far_from_zero_and_a_teacher_that_is_the_model(device: str) -> None:
    hidden, _, weight, bias, targets = given(9, 16, 100, torch.float32, device)
    bias = bias * 1000 - 5000
    expected = expected_of(hidden, hidden, weight, bias, targets)
    found = linear_cross_entropy(hidden, weight, targets, bias=bias, teacher=hidden)
    assert_near(found.nll, expected.nll, relative=1e-5, absolute=2e-3)  # fp32 holds no more of logits of -5,000
    assert_near(found.kl, torch.zeros(9, device=device), relative=0, absolute=2e-3)


def test_a_target_that_is_no_word_gives_nan_and_the_others_their_loss(device: str) -> None:
    hidden, _, weight, _, targets = given(4, 16, 30, torch.float32, device)
    expected = linear_cross_entropy(hidden, weight, targets).nll
    found = linear_cross_entropy(hidden, weight, targets.index_fill(0, torch.tensor([1, 3], device=device), 30)).nll
    assert found[[1, 3]].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    hidden, _, weight, _, targets = given(70, 16, 90, torch.float32, device)
    alone = linear_cross_entropy(hidden[65:66], weight, targets[65:66]).nll
    assert torch.equal(alone, linear_cross_entropy(hidden, weight, targets).nll[65:66])


def test_bad_arguments(device: str) -> None:
    hidden, teacher, weight, _, targets = given(5, 16, 30, torch.float32, device)
    with pytest.raises(RequestError, match=r"weight: expected shape \[30, 16\], got \[30, 15\]"):
        linear_cross_entropy(hidden, weight[:, :15].contiguous(), targets)
    with pytest.raises(RequestError, match="weight: expected at least one row"):
        linear_cross_entropy(hidden, weight[:0], targets)
    with pytest.raises(RequestError, match=r"targets: expected int64 \[5\]"):
        linear_cross_entropy(hidden, weight, targets[:4])
    with pytest.raises(RequestError, match=r"soft_cap: -1\.0 is not a positive number"):
        linear_cross_entropy(hidden, weight, targets, soft_cap=-1.0)
    with pytest.raises(RequestError, match=r"teacher: expected shape \[5, 16\]"):
        linear_cross_entropy(hidden, weight, targets, teacher=teacher[:3])
