"""The regression of gains against plain NumPy in float64, on awkward shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from layercoop_fast.errors import RequestError
from layercoop_fast.repair.gains import GainEquations, GainSite
from layercoop_fast.repair.patches import applied, patch


def tokens(n_tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(n_tokens, width, generator=generator) * torch.logspace(-1, 2, width)
    return y, torch.randn(n_tokens, width, generator=generator), torch.rand(n_tokens, generator=generator) + 0.1


@pytest.mark.parametrize("shape", [(1, 1), (40, 7), (5, 13), (301, 33)])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_each_gain_is_a_least_squares_of_its_own(shape: tuple[int, int], strength: float) -> None:
    y, e, w = tokens(*shape)
    sums = GainEquations.empty(shape[1])
    for first in range(0, shape[0], 17):
        part = slice(first, first + 17)
        sums.add(y[part], e[part], w[part])
    expected = []
    for column in range(shape[1]):
        root = np.sqrt(w.double().numpy())
        one, missing = root * y[:, column].double().numpy(), root * e[:, column].double().numpy()
        rows = np.append(one, np.sqrt(strength * (one**2).sum()))[:, None]
        expected.append(np.linalg.lstsq(rows, np.append(missing, 0.0), rcond=None)[0][0])
    np.testing.assert_allclose(sums.change(strength).numpy(), expected, rtol=1e-9)


def test_a_share_can_be_taken_out() -> None:
    y, e, w = tokens(101, 9)
    whole, own, rest = (GainEquations.empty(9) for _ in range(3))
    whole.add(y, e, w)
    own.add(y[60:], e[60:], w[60:])
    rest.add(y[:60], e[:60], w[:60])
    torch.testing.assert_close((whole - own).change(0.1), rest.change(0.1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((rest + own).change(0.1), whole.change(0.1), rtol=1e-9, atol=1e-12)
    assert ((whole - own).tokens, (rest + own).tokens) == (60, 101)


def test_what_makes_no_regression_is_refused_or_left_alone() -> None:
    sums = GainEquations.empty(2)
    assert sums.change(1.0).tolist() == [0, 0]
    with pytest.raises(RequestError, match="above 0"):
        sums.change(0.0)
    with pytest.raises(RequestError, match="tokens of shapes"):
        sums.add(torch.ones(4, 3), torch.ones(4, 3), torch.ones(4))
    with pytest.raises(RequestError, match="not finite"):
        sums.add(torch.full((4, 2), torch.nan), torch.ones(4, 2), torch.ones(4))
    sums.add(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 5.0]]), torch.ones(1))
    assert sums.change(1.0).tolist() == [0.5, 0]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_read_is_what_the_gains_scale(offset: float, bias: bool) -> None:
    """A change c of the gains multiplies what the regression reads by 1 + c; a bias of the norm is no part of it."""

    class Norm(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, self.normalized_shape, self.weight + offset, self.bias)

    norm = Norm(6, bias=bias)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    site = GainSite(0, "norm", norm, offset)
    x, change = torch.randn(9, 6), torch.linspace(-0.5, 2, 6).double()
    read = site.reads(x, norm(x)).detach()
    added = norm.bias.detach() if bias else torch.zeros(6)
    torch.testing.assert_close(read + added, norm(x).detach())
    with applied([patch(site, change)]):
        torch.testing.assert_close(norm(x).detach() - added, read * (1 + change.float()), rtol=1e-5, atol=1e-5)
