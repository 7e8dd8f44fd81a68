"""The regression against plain NumPy in float64, on awkward shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layercoop_fast.errors import RequestError
from layercoop_fast.repair.ridge import NormalEquations


def tokens(n_tokens: int, inputs: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n_tokens, inputs, generator=generator) * torch.logspace(-1, 2, inputs)
    e = torch.randn(n_tokens, outputs, generator=generator)
    return u, e, torch.rand(n_tokens, generator=generator) + 0.1


def augmented(
    u: torch.Tensor, e: torch.Tensor, w: torch.Tensor, strength: float, intercept: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The ridge as least squares with one more row an input: float64 [H, n], perhaps with the intercept's column."""
    root = np.sqrt(w.double().numpy())[:, None]
    x, y = u.double().numpy(), e.double().numpy()
    scale = (w.double().numpy()[:, None] * x**2).sum() / x.shape[1]
    rows = np.sqrt(strength * scale) * np.eye(x.shape[1])
    if intercept:
        x, rows = np.hstack([x, np.ones((len(x), 1))]), np.hstack([rows, np.zeros((len(rows), 1))])
    wanted = np.vstack([root * y, np.zeros((len(rows), y.shape[1]))])
    return np.linalg.lstsq(np.vstack([root * x, rows]), wanted, rcond=None)[0].T


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 7, 3), (5, 13, 2), (300, 33, 17)])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
@pytest.mark.parametrize("intercept", [False, True])
def test_the_change_is_that_of_least_squares(shape: tuple[int, int, int], strength: float, intercept: bool) -> None:
    u, e, w = tokens(*shape)
    sums = NormalEquations.empty(shape[1], shape[2], intercept=intercept)
    sums.add(u, e, w)
    expected = augmented(u, e, w, strength, intercept)
    np.testing.assert_allclose(sums.change(strength).numpy(), expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


def test_streaming_is_one_shot_and_a_share_can_be_taken_out() -> None:
    u, e, w = tokens(101, 9, 4)
    whole, streamed, rest = (NormalEquations.empty(9, 4) for _ in range(3))
    whole.add(u, e, w)
    for first in range(0, 101, 17):
        part = slice(first, first + 17)
        streamed.add(u[part], e[part], w[part])
    torch.testing.assert_close(streamed.change(0.1), whole.change(0.1), rtol=1e-10, atol=1e-12)
    rest.add(u[:60], e[:60], w[:60])
    own = NormalEquations.empty(9, 4)
    own.add(u[60:], e[60:], w[60:])
    torch.testing.assert_close((whole - own).change(0.1), rest.change(0.1), rtol=1e-8, atol=1e-10)
    assert (whole - own).tokens == 60
    assert (rest + own).tokens == 101


def test_a_stronger_ridge_changes_less() -> None:
    sums = NormalEquations.empty(6, 6)
    sums.add(*tokens(50, 6, 6))
    sizes = [float(sums.change(strength).norm()) for strength in (1e-3, 1e-1, 10.0, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-5 * sizes[0]


def test_what_makes_no_regression_is_refused() -> None:
    sums = NormalEquations.empty(3, 2)
    with pytest.raises(RequestError, match="not all zero"):
        sums.change(1.0)
    with pytest.raises(RequestError, match="tokens of shapes"):
        sums.add(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(RequestError, match="not finite"):
        sums.add(torch.full((4, 3), torch.inf), torch.ones(4, 2))
    sums.add(torch.ones(4, 3), torch.ones(4, 2))
    with pytest.raises(RequestError, match="above 0"):
        sums.change(0.0)
