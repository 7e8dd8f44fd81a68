from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_networks import magnitude, random_networks

from layercoop_fast import enumerate_masks
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.all_masks import AllMasks
from layercoop_fast.kernels.gpu.enumeration import CONFIGS
from layercoop_fast.kernels.reference.networks import all_masks_reference, predict_logits_reference

SMALL = CONFIGS["small"]


def core_of(networks, device: str, **options) -> tuple[AllMasks, np.ndarray]:
    shifts = np.linspace(0.2, 0.8, networks.n_players + 1)
    core = AllMasks(networks, shifts, device=device, config=options.pop("config", SMALL), **options)
    return core, shifts


def assert_sums(core: AllMasks, networks, shifts: np.ndarray) -> None:
    sizes, squares, players, pairs = all_masks_reference(networks, shifts)
    tolerance = 2e-7 * magnitude(networks) * 2.0**networks.n_players
    np.testing.assert_allclose(core.sizes, sizes, rtol=0, atol=tolerance)
    np.testing.assert_allclose(core.squares, squares, rtol=0, atol=2 * magnitude(networks) * tolerance)
    np.testing.assert_allclose(core.players, players, rtol=0, atol=tolerance)
    if core.pairs is not None:
        np.testing.assert_allclose(core.pairs, pairs, rtol=0, atol=tolerance)


# players, and those of the low and of the high half: the others are a launch for each of their subsets; 6 players have
# a size of two blocks, which are of one chunk or of two
@pytest.mark.parametrize(
    ("n", "halves", "chunk"),
    [(1, (4, 4), 8), (2, (1, 1), 8), (5, (2, 1), 8), (7, (6, 1), 8), (7, (1, 6), 8), (7, (1, 6), 1)],
)
def test_sums_of_all_masks(n: int, halves: tuple[int, int], chunk: int, device: str, monkeypatch) -> None:
    monkeypatch.setattr("layercoop_fast.kernels.gpu.all_masks.CHUNK", chunk)
    networks = random_networks(n, 2, 2)
    core, shifts = core_of(networks, device, pairs=True, halves=halves)
    assert core.n_tasks == 2 ** max(n - sum(halves), 0)
    core.run(core.n_tasks)
    assert core.counts.sum() == 2**n
    assert_sums(core, networks, shifts)


def test_weights_whose_exponentials_must_not_be_multiplied(device: str) -> None:
    networks = random_networks(4, 3, output="linear")
    weight = networks.hidden_weight.copy()
    weight[0, 1] = [100, -100, 300, -300]  # e^100 overflows, e^-100 is 0, and their product should be 1
    networks = replace(networks, hidden_weight=weight)
    core, shifts = core_of(networks, device, halves=(2, 2))
    core.run(1)
    assert_sums(core, networks, shifts)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_activations(activation, device: str) -> None:
    networks = random_networks(3, 2, 1, activation=activation, output="linear")
    core, shifts = core_of(networks, device, halves=(2, 1))
    core.run(1)
    assert_sums(core, networks, shifts)


def test_the_large_configuration(device: str) -> None:
    networks = random_networks(6, 3)
    core, shifts = core_of(networks, device, halves=(3, 3), config=CONFIGS["large"])
    core.run(1)
    assert_sums(core, networks, shifts)


@pytest.mark.parametrize(("halves", "top"), [((4, 2), 3), ((3, 3), 20), ((2, 3), 1)])
def test_the_best_of_every_size(halves: tuple[int, int], top: int, device: str) -> None:
    networks = random_networks(6, 2, 2)
    core, _ = core_of(networks, device, top=top, halves=halves)
    core.run(core.n_tasks)
    masks = (np.arange(64)[:, None] >> np.arange(6) & 1).astype(bool)
    scores = predict_logits_reference(networks, masks).sum(axis=1)
    for size in range(7):
        of_size = np.flatnonzero(masks.sum(1) == size)
        expected = of_size[np.argsort(-scores[of_size])][:top]
        codes, found = core.best(size)
        assert codes.tolist() == expected.tolist()
        np.testing.assert_allclose(found, scores[expected], rtol=0, atol=1e-5)


def test_enumerate_masks_on_a_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AllMasks.__init__.__kwdefaults__, "config", SMALL)
    networks = random_networks(5, 3, 2)
    expected = enumerate_masks(networks, interactions=True, top=2)
    found = enumerate_masks(networks, interactions=True, top=2, device="cuda")
    for name in ("by_size", "pairs_by_size", "means", "variances"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
    for one, other in zip(found.best, expected.best, strict=True):
        assert one.masks.tolist() == other.masks.tolist()


def test_bad_requests(device: str) -> None:
    with pytest.raises(RequestError, match="45 players have too many masks to go through: at most 44 on a GPU"):
        core_of(random_networks(45, 2), device)
    with pytest.raises(RequestError, match="top must be 0 to 500 masks of each size on a GPU, not 501"):
        enumerate_masks(random_networks(4, 2), top=501, device="cuda")
    with pytest.raises(RequestError, match="costs and budget work on the CPU alone"):
        enumerate_masks(random_networks(4, 2), costs=[1.0] * 4, budget=2.0, device="cuda")


def test_tables_are_exact_whatever_precision_products_of_fp32_may_have(device: str) -> None:
    """Of TF32, and on some CPUs of bf16, where a process allows it."""
    networks, before = random_networks(10, 24), torch.get_float32_matmul_precision()
    found = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            core = AllMasks(networks, np.zeros(11), device=device, halves=(4, 4))
            found.append((core._tables.low, core._tables.high))
        finally:
            torch.set_float32_matmul_precision(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    low, codes = found[0][0], core._low.code.clamp_min(0)
    kept = ((codes[:, None] >> torch.arange(4, device=codes.device)) & 1).double().cpu()
    expected = torch.tensor(networks.hidden_weight[0, :, :4]).double() @ kept.T
    assert torch.equal(low.cpu(), expected.float())
