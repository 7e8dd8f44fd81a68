from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from close import assert_near, noise
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels import linear_divergence as module
from layercoop_fast.kernels.linear_divergence import Head, TeacherStates, TopTokens, linear_divergence
from layercoop_fast.kernels.reference.head import divergence_reference, top_divergence_reference

# rows, hidden width, words, width of the teacher
SHAPES = [(1, 1, 1, 1), (3, 8, 17, 5), (20, 12, 300, 12), (7, 48, 4099, 16), (530, 8, 61, 8)]
ENDINGS: list[dict[str, Any]] = [{}, {"scale": 0.25}, {"soft_cap": 5.0}, {"scale": 3.0, "soft_cap": 2.0}]
TEACHER: dict[str, Any] = {"scale": 0.5, "soft_cap": 4.0}
TOLERANCE = {torch.float64: (1e-9, 1e-11), torch.float32: (2e-5, 2e-6), torch.bfloat16: (3e-2, 3e-3)}


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, width, words, other = shape
    hidden = noise(rows, width, dtype=dtype)
    weight, bias = noise(words, width, dtype=dtype, seed=2, scale=2 * width**-0.5), noise(words, dtype=dtype, seed=3)
    states, theirs = (
        noise(rows, other, dtype=dtype, seed=4),
        noise(words, other, dtype=dtype, seed=5, scale=other**-0.5),
    )
    return hidden, weight, bias, states, theirs


def slopes(value: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value * 3.0, of))


def ended(logits: Tensor, scale: float = 1.0, soft_cap: float | None = None) -> Tensor:
    logits = scale * logits
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


def top(teacher: Tensor, count: int) -> TopTokens:
    log_probs, words = teacher.log_softmax(-1).topk(count)
    rest = teacher.softmax(-1).scatter(1, words, 0.0).sum(-1)
    return TopTokens(words, log_probs, rest.float())


@pytest.fixture(params=["core", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, level: str) -> str:
    """By the C++ core under each instruction set, and by torch, as on a GPU."""
    if request.param == "torch":
        monkeypatch.setattr(module, "is_native", lambda tensor: False)
    return str(request.param)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_slopes_are_those_of_the_formula(
    way: str, shape: tuple[int, int, int, int], dtype: torch.dtype, ending: dict[str, Any]
) -> None:
    hidden, weight, bias, states, theirs = inputs(shape, dtype)
    given = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    found = linear_divergence(
        given[0], Head(given[1], given[2], **ending), TeacherStates(states, Head(theirs, **TEACHER))
    )
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight, bias)]
    z = ended(exact[0] @ exact[1].t() + exact[2], **ending)
    expected = divergence_reference(z, ended(states.double() @ theirs.double().t(), **TEACHER)).mean()
    relative, absolute = TOLERANCE[dtype]
    assert_near(found, expected, relative=relative, absolute=absolute)
    for one, other, of in zip(slopes(found, *given), slopes(expected, *exact), given, strict=True):
        assert one.dtype == of.dtype
        # Where a slope is a sum of many that cancel, rounding is that of the largest.
        assert_near(one, other, relative=relative, absolute=absolute + relative * float(other.abs().max()))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("count", [1, 5, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_named_words_and_one_event_for_the_rest(
    way: str, count: int, ending: dict[str, Any], dtype: torch.dtype
) -> None:
    hidden, weight, bias, states, theirs = inputs((40, 8, 17, 5), dtype)
    teacher = top((3 * states @ theirs.t()).float(), count)
    given = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    found = linear_divergence(given[0], Head(given[1], given[2], **ending), teacher)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight, bias)]
    z = ended(exact[0] @ exact[1].t() + exact[2], **ending)
    rest = teacher.rest if count < 17 else torch.zeros_like(teacher.rest)
    expected = top_divergence_reference(z, teacher.tokens, teacher.log_probs, rest).mean()
    relative, absolute = TOLERANCE[dtype]
    assert_near(found, expected, relative=relative, absolute=absolute)
    for one, other in zip(slopes(found, *given), slopes(expected, *exact), strict=True):
        assert_near(one, other, relative=relative, absolute=relative * float(other.abs().max()))


def test_a_teacher_in_another_dtype(level: str) -> None:
    hidden, weight, _, states, theirs = inputs((7, 48, 61, 16), torch.bfloat16)
    found = linear_divergence(hidden, Head(weight), TeacherStates(states.float(), Head(theirs.float())))
    expected = divergence_reference((hidden @ weight.t()).double(), states.double() @ theirs.double().t()).mean()
    assert_near(found, expected, relative=1e-2)


def test_what_is_no_number_is_no_number_in_the_divergence(way: str) -> None:
    hidden, weight, _, states, theirs = inputs((20, 12, 300, 12), torch.float32)
    weight[7, 3] = float("nan")
    for teacher in (TeacherStates(states, Head(theirs)), top(states @ theirs.t(), 5)):
        assert not torch.isfinite(linear_divergence(hidden, Head(weight), teacher))


def test_named_tokens_outside_of_the_vocabulary_are_refused() -> None:
    logits = np.zeros((1, 5), dtype=np.float32)
    for token in (-1, 5):
        tokens = np.array([[token]], dtype=np.int64)
        with pytest.raises(ValueError, match=f"tokens: {token} is not from 0 to 4"):
            _C.named_divergence(logits, tokens, logits[:, :1].copy(), logits[0, :1].copy(), logits[0, :1].copy())


def test_all_words_named_is_the_whole_divergence_and_fewer_are_less() -> None:
    hidden, weight, _, states, theirs = inputs((40, 8, 17, 5), torch.float64)
    teacher = 3 * states @ theirs.t()
    values = [float(linear_divergence(hidden, Head(weight), top(teacher, count))) for count in (1, 4, 9, 17)]
    whole = float(linear_divergence(hidden, Head(weight), TeacherStates(3 * states, Head(theirs))))
    assert values == sorted(values)
    assert values[-1] == pytest.approx(whole, rel=1e-6)
    assert values[0] < 0.95 * whole


def test_rows_and_parts_of_the_work_change_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, states, theirs = inputs((40, 12, 300, 12), torch.float32)

    def measured() -> tuple[Tensor, Tensor]:
        given = hidden.clone().requires_grad_()
        value = linear_divergence(given, Head(weight), TeacherStates(states, Head(theirs)))
        return value, slopes(value, given)[0]

    value, slope = measured()
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "_AT_ONCE", {"cpu": 700})
    other, other_slope = measured()
    assert_near(other, value, relative=1e-5)
    assert_near(other_slope, slope, relative=1e-4, absolute=1e-7)


def test_a_teacher_equal_to_the_student_teaches_nothing(way: str) -> None:
    hidden, weight, _, _, _ = inputs((20, 12, 300, 12), torch.float32)
    given = hidden.clone().requires_grad_()
    value = linear_divergence(given, Head(weight), TeacherStates(hidden, Head(weight)))
    assert abs(float(value.detach())) < 1e-6
    assert float(slopes(value, given)[0].abs().max()) < 1e-7


def test_wrong_shapes_are_refused() -> None:
    hidden, weight, _, states, theirs = inputs((20, 12, 300, 12), torch.float32)
    head, teacher = Head(weight), TeacherStates(states, Head(theirs))
    words = TopTokens(torch.zeros(20, 4, dtype=torch.int64), torch.zeros(20, 4), torch.zeros(20))
    for given in [
        (hidden[:, :5], head, teacher),
        (hidden[:0], head, teacher),
        (hidden.double(), head, teacher),
        (hidden[:4], head, teacher),
        (hidden, Head(weight[:9]), teacher),
        (hidden[:4], head, words),
        (hidden, head, TopTokens(words.tokens, words.log_probs[:, :2], words.rest)),
        (hidden, head, TopTokens(words.tokens, words.log_probs, words.rest[:2])),
    ]:
        with pytest.raises(RequestError, match="expected"):
            linear_divergence(*given)
