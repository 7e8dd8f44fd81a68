"""A surrogate's network over many masks: the kernels against well-batched torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from layercoop_fast import stratified_masks
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.surrogate import marginals, predict
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.shapley.enumeration import enumerate_masks

PLAYERS, HIDDEN, BATCH = 32, 64, 1 << 12


def network(n: int) -> Networks:
    rng = np.random.default_rng(n)
    shapes = [(1, HIDDEN, n), (1, HIDDEN), (1, HIDDEN), (1,)]
    return Networks(*(rng.normal(scale=0.3, size=shape).astype(np.float32) for shape in shapes))


def in_torch(networks: Networks, masks: torch.Tensor) -> torch.Tensor:
    w, b, v, c = (
        torch.tensor(array[0])
        for array in (
            networks.hidden_weight,
            networks.hidden_bias,
            networks.output_weight,
            networks.output_bias,
        )
    )
    parts = [torch.sigmoid(F.celu(F.linear(some.float(), w, b)) @ v + c) for some in torch.split(masks, BATCH)]
    return torch.cat(parts)


@pytest.fixture(scope="module")
def masks(full: bool) -> np.ndarray:
    return stratified_masks(PLAYERS, 80_000 if full else 8_000)


@pytest.mark.benchmark(group="values of masks, 32 players")
def test_values(clock, masks: np.ndarray) -> None:
    clock("ours", lambda: predict(network(PLAYERS), masks), rounds=15)


@pytest.mark.benchmark(group="values of masks, 32 players")
def test_values_in_torch(clock, masks: np.ndarray) -> None:
    clock("batched torch", lambda: in_torch(network(PLAYERS), torch.from_numpy(masks)), rounds=9)


@pytest.mark.benchmark(group="mean marginals of masks, 32 players")
def test_marginals(clock, masks: np.ndarray) -> None:
    clock("ours", lambda: marginals(network(PLAYERS), masks), rounds=15)


@pytest.mark.benchmark(group="mean marginals of masks, 32 players")
def test_marginals_in_torch(clock, masks: np.ndarray) -> None:
    """Every neighbour as a row, on a tenth of the masks."""
    some = torch.from_numpy(masks[::10])
    flips = torch.eye(PLAYERS, dtype=torch.bool)

    def batched() -> torch.Tensor:
        worths = in_torch(network(PLAYERS), some)
        neighbours = in_torch(network(PLAYERS), (some[:, None] ^ flips).reshape(-1, PLAYERS)).view(-1, PLAYERS)
        gains = neighbours - worths[:, None]
        return torch.where(some, -gains, gains).mean(0)

    clock("batched torch", batched, rounds=5, scale=10.0)


@pytest.mark.benchmark(group="every mask: means by size")
def test_enumeration(clock, full: bool) -> None:
    clock("ours", lambda: enumerate_masks(network(24 if full else 20)), rounds=5)


@pytest.mark.benchmark(group="every mask: means by size")
def test_enumeration_in_torch(clock, full: bool) -> None:
    """Values alone, of the masks of 16 players, scaled: what a user would begin with."""
    masks = torch.from_numpy(all_masks(16))
    clock(
        "batched torch, values alone", lambda: in_torch(network(16), masks), rounds=5, scale=2.0 ** (8 if full else 4)
    )
