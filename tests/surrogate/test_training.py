from __future__ import annotations

import numpy as np
import pytest
import torch

from layercoop_fast.surrogate.threads import one_thread
from layercoop_fast.surrogate.training import Gradient, Parameters, Schedule, forward, train


def random_networks(ensemble: int, hidden: int, n: int, seed: int = 0) -> Parameters:
    p = Parameters.zeros(ensemble, hidden, n)
    p.flat.copy_(torch.randn(p.flat.shape, generator=torch.Generator().manual_seed(seed)))
    return p


def plain_values(p: Parameters, x: torch.Tensor) -> torch.Tensor:
    """The formula, network by network, in the dtype of x."""
    ensemble, hidden = p.output_weight.shape
    values = []
    for e in range(ensemble):
        rows = slice(e * hidden, (e + 1) * hidden)
        units = torch.celu(x @ p.hidden_weight[rows].T + p.hidden_bias[rows])
        values.append(p.constant[e] + x @ p.linear[e] + units @ p.output_weight[e])
    return torch.stack(values, dim=1)


def in_float64(p: Parameters) -> Parameters:
    return Parameters(*(getattr(p, name).double().requires_grad_() for name in Parameters.__dataclass_fields__))


@pytest.mark.parametrize(("ensemble", "hidden", "n", "rows"), [(1, 1, 1, 1), (3, 5, 7, 11), (8, 17, 13, 31)])
def test_values_and_gradients_are_those_of_the_formula(ensemble: int, hidden: int, n: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    p = random_networks(ensemble, hidden, n)
    x = torch.randn(rows, n, generator=generator)
    targets = torch.randn(rows, ensemble, generator=generator)
    weights = torch.poisson(torch.ones(rows, ensemble), generator=generator)
    exact = in_float64(p)
    expected = plain_values(exact, x.double())
    torch.testing.assert_close(forward(p, x).double(), expected.detach(), rtol=1e-5, atol=1e-5)
    (weights.double() * (expected - targets.double()) ** 2 / rows / 2).sum().backward()
    gradient = Gradient(p, rows + 3)
    gradient(x.flip(0)[:1], targets[:1], weights[:1])  # fewer rows, and nothing of them is left behind
    grad = gradient(x, targets, weights)
    for name in ("hidden_weight", "hidden_bias", "output_weight", "linear", "constant"):
        torch.testing.assert_close(
            getattr(grad, name).double(), getattr(exact, name).grad, rtol=1e-4, atol=1e-5, msg=lambda m, s=name: s + m
        )


@one_thread()
def test_the_optimiser_is_adamw() -> None:
    """Against torch's own, whole batches, the same rows, with the decay on hidden and output weights alone."""
    p = random_networks(2, 3, 4)
    x, targets, weights = torch.randn(9, 4), torch.randn(9, 2), torch.ones(9, 2)
    theirs = Parameters.zeros(2, 3, 4)
    theirs.flat.copy_(p.flat)
    decayed = [theirs.hidden_weight, theirs.hidden_bias, theirs.output_weight]
    others = [theirs.linear, theirs.constant]
    leaves = [tensor.clone().requires_grad_() for tensor in decayed + others]
    optimiser = torch.optim.AdamW(
        [{"params": leaves[:3], "weight_decay": 0.1}, {"params": leaves[3:], "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.9, 0.99),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    live = Parameters(p.flat, *leaves)
    for _ in range(20):
        optimiser.zero_grad()
        (weights * (plain_values(live, x) - targets) ** 2 / 9 / 2).sum().backward()
        optimiser.step()
        schedule.step()
    train(p, x, targets, weights, Schedule(20, 9, 0.02, 0.1), torch.Generator().manual_seed(0))
    for ours, leaf in zip((p.hidden_weight, p.hidden_bias, p.output_weight, p.linear, p.constant), leaves, strict=True):
        torch.testing.assert_close(ours, leaf.detach(), rtol=1e-3, atol=1e-4)


def test_rows_of_weight_zero_are_not_there() -> None:
    generator = torch.Generator().manual_seed(2)
    x, targets = torch.randn(12, 3, generator=generator), torch.randn(12, 2, generator=generator)
    weights = torch.ones(12, 2)
    weights[5:, 1] = 0
    fitted = []
    for nonsense in (0.0, 1e3):
        spoilt = targets.clone()
        spoilt[5:, 1] += nonsense
        p = random_networks(2, 4, 3)
        train(p, x, spoilt, weights, Schedule(5, 4, 0.05, 0.0), torch.Generator().manual_seed(3))
        fitted.append(p.flat)
    np.testing.assert_array_equal(*fitted)


def test_fresh_networks_are_their_linear_part() -> None:
    linear, constant = torch.randn(3, 5), torch.randn(3)
    p = Parameters.fresh(linear, constant, 4, torch.Generator().manual_seed(0))
    x = torch.randn(7, 5)
    torch.testing.assert_close(forward(p, x), x @ linear.T + constant)
    assert p.hidden_weight.abs().min() > 0


def test_stops_when_told() -> None:
    told: list[int] = []
    p, x = random_networks(1, 2, 3), torch.randn(5, 3)
    pairs = torch.randn(5, 1), torch.ones(5, 1)

    def until_third(epoch: int) -> bool:
        told.append(epoch)
        return epoch < 3

    train(p, x, *pairs, Schedule(9, 2, 0.01, 0.0), torch.Generator(), after_epoch=until_third)
    assert told == [1, 2, 3]
