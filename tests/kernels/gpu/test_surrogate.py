from __future__ import annotations

import numpy as np
import pytest
import torch
from random_networks import SPIKES, magnitude, random_networks, spiked

from layercoop_fast.errors import RequestError
from layercoop_fast.game.worths import Worths
from layercoop_fast.kernels import surrogate as kernels
from layercoop_fast.kernels.gpu.all_masks import AllMasks
from layercoop_fast.kernels.gpu.enumeration import CONFIGS as ENUMERATION
from layercoop_fast.kernels.gpu.surrogate import CONFIGS, DeviceNetworks, launch_marginals
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.reference.networks import marginals_reference, predict_logits_reference
from layercoop_fast.search.valuation import value_players
from layercoop_fast.shapley.enumeration import enumerate_masks
from layercoop_fast.shapley.stratified import stratified_marginals
from layercoop_fast.surrogate.published import PublishedSurrogate
from layercoop_fast.surrogate.surrogate import NetworkGame

SMALL = ENUMERATION["small"]

# players, units, networks: one of each, one more than a block, several blocks
SHAPES = [(1, 1, 1), (5, 7, 3), (33, 33, 1), (70, 9, 2)]


def random_masks(n: int, count: int = 19) -> np.ndarray:
    masks = np.random.default_rng(n).random((count, n)) < 0.6
    masks[0], masks[1] = False, True
    return masks


def assert_agree(networks, masks: np.ndarray, device: str, factored: bool | None = None) -> None:
    there = DeviceNetworks.of(networks, device)
    if factored is not None:
        assert there.factored == factored
    size = magnitude(networks)
    logits = kernels.predict_logits(networks, masks, "cuda")
    np.testing.assert_allclose(logits, predict_logits_reference(networks, masks), rtol=0, atol=2e-6 * size)
    mean, stderr = kernels.marginals(networks, masks, "cuda")
    expected_mean, expected_stderr = marginals_reference(networks, masks)
    np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=2e-6 * size)
    np.testing.assert_allclose(stderr, expected_stderr, rtol=1e-3, atol=2e-6 * size)


@pytest.mark.parametrize(("n", "hidden", "networks"), SHAPES)
def test_shapes(n: int, hidden: int, networks: int, device: str) -> None:
    assert_agree(random_networks(n, hidden, networks), random_masks(n), device, factored=True)


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
@pytest.mark.parametrize("activation", ["celu", "relu", "gelu", "tanh"])
def test_activations_and_outputs(activation, output, device: str) -> None:
    networks = random_networks(5, 6, 2, activation=activation, output=output)
    assert_agree(networks, random_masks(5, 9), device)


@pytest.mark.parametrize("name", SPIKES)
def test_weights_at_which_a_product_of_exponentials_could_go_wrong(name: str, device: str) -> None:
    assert_agree(spiked(name), random_masks(10, 9), device)


@pytest.mark.parametrize("config", ["celu", "many"])
def test_every_configuration_and_several_passes(config: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layercoop_fast.kernels.gpu.surrogate.MOST_MASKS", 20)
    networks, masks = random_networks(6, 4, 2), random_masks(6, 45)
    totals = launch_marginals(
        DeviceNetworks.of(networks, device), torch.from_numpy(masks).to(device), config=CONFIGS[config]
    )
    np.testing.assert_allclose(totals[0].cpu() / 45, marginals_reference(networks, masks)[0], rtol=0, atol=1e-6)


def test_games_of_networks_on_a_device(device: str) -> None:
    networks, masks = random_networks(5, 10), random_masks(5)
    game = NetworkGame(networks)
    published = PublishedSurrogate(*(torch.tensor(part[0]) for part in parts_of(networks)))
    np.testing.assert_allclose(game(masks, device="cuda"), game(masks), rtol=0, atol=1e-6)
    np.testing.assert_allclose(published(masks, device="cuda"), published(masks), rtol=0, atol=1e-6)
    for each in (game, published):
        found = stratified_marginals(each, masks, device="cuda")
        expected = stratified_marginals(each, masks)
        np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-3, atol=1e-6)
    with pytest.raises(RequestError, match="device: a GPU takes the marginals of networks alone"):
        stratified_marginals(lambda asked: asked.sum(1).astype(float), masks, device="cuda")


def parts_of(networks: Networks) -> tuple[np.ndarray, ...]:
    return networks.hidden_weight, networks.hidden_bias, networks.output_weight, networks.output_bias


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: that there is none is not to be said")
def test_without_a_gpu_it_says_so() -> None:
    networks, masks = random_networks(5, 7), random_masks(5)
    for ask in (kernels.predict_logits, kernels.marginals):
        with pytest.raises(RequestError, match="device: there is no cuda here"):
            ask(networks, masks, "cuda")
    with pytest.raises(RequestError, match="device: mps is neither cpu nor cuda or cuda:N"):
        enumerate_masks(networks, device="mps")


def test_valuing_players_on_a_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AllMasks.__init__.__kwdefaults__, "config", SMALL)
    masks = random_masks(2, 24)
    worths = np.exp(-(~masks).sum(1) * 0.3 - 0.4 * (~masks[:, 0] & ~masks[:, 1]))
    window_nll = np.repeat(-np.log(worths)[:, None], 2, axis=1)
    measured = Worths(masks, worths, window_nll[:, 0], window_nll, np.full(2, 9), {"utility": "accuracy"})
    expected = value_players(measured, interactions=True, best=1)
    found = value_players(measured, interactions=True, best=1, device="cuda")
    np.testing.assert_allclose(found.intervals.values, expected.intervals.values, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.interactions, expected.interactions, rtol=0, atol=1e-5)
    assert [best.masks.tolist() for best in found.best] == [best.masks.tolist() for best in expected.best]
