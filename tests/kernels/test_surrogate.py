"""Values and marginals of networks, each instruction set against the formulas in float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from random_networks import SPIKES, magnitude, random_networks, spiked

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.networks import Activation, Networks, Output
from layercoop_fast.kernels.reference.networks import (
    flips_reference,
    marginals_reference,
    predict_logits_reference,
    predict_reference,
)
from layercoop_fast.kernels.surrogate import flips, marginals, predict, predict_logits

pytestmark = pytest.mark.usefixtures("restore_core")

ISAS = _C.isa_available()
ACTIVATIONS: list[Activation] = ["celu", "relu", "gelu", "tanh"]

# Players around the borders of the tables (4 bits), the flips (8) and the words (64); units around the lanes.
SHAPES = [
    (1, 1, 1),
    (2, 5, 3),
    (15, 16, 1),
    (16, 17, 2),
    (17, 31, 1),
    (31, 33, 1),
    (32, 64, 8),
    (33, 70, 2),
    (64, 15, 1),
]
LARGER = [(65, 20, 1), (130, 40, 2)]


def random_masks(n: int, count: int = 33) -> np.ndarray:
    masks = np.random.default_rng(n).random((count, n)) < 0.6
    masks[0], masks[1] = False, True
    return masks


def assert_values(networks: Networks, masks: np.ndarray) -> None:
    expected = predict_logits_reference(networks, masks)
    size = np.abs(expected).max() + 1
    np.testing.assert_allclose(predict_logits(networks, masks), expected, rtol=0, atol=2e-6 * size)
    np.testing.assert_allclose(predict(networks, masks), predict_reference(networks, masks), rtol=0, atol=1e-6 * size)


def assert_flips(networks: Networks, masks: np.ndarray) -> None:
    expected, neighbours = flips_reference(networks, masks)
    size = np.abs(predict_logits_reference(networks, masks)).max() + 1
    worths, flipped = flips(networks, masks)
    np.testing.assert_allclose(worths, expected, rtol=0, atol=2e-6 * size)
    np.testing.assert_allclose(flipped, neighbours, rtol=0, atol=2e-6 * size)
    mean, stderr = marginals(networks, masks)
    expected_mean, expected_stderr = marginals_reference(networks, masks)
    np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=2e-6 * size)
    np.testing.assert_allclose(stderr, expected_stderr, rtol=1e-3, atol=2e-6 * size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "hidden", "n_networks"), SHAPES + LARGER)
def test_shapes(isa: str, n: int, hidden: int, n_networks: int) -> None:
    _C.set_isa(isa)
    networks = random_networks(n, hidden, n_networks)
    assert_values(networks, random_masks(n))
    assert_flips(networks, random_masks(n))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("output", ["sigmoid", "linear"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa: str, activation: Activation, output: Output) -> None:
    _C.set_isa(isa)
    for scale in (0.01, 0.3, 2.0):
        networks = random_networks(19, 37, 2, activation=activation, output=output, scale=scale)
        assert_values(networks, random_masks(19))
        assert_flips(networks, random_masks(19))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SPIKES)
def test_no_overflow_and_no_infinity_times_zero(isa: str, name: str) -> None:
    _C.set_isa(isa)
    networks, masks = spiked(name), random_masks(10)
    size = magnitude(networks)
    expected, neighbours = flips_reference(networks, masks)
    worths, flipped = flips(networks, masks)
    np.testing.assert_allclose(predict_logits(networks, masks)[:, 0], expected, rtol=0, atol=3e-7 * size)
    np.testing.assert_allclose(worths, expected, rtol=0, atol=3e-7 * size)
    np.testing.assert_allclose(flipped, neighbours, rtol=0, atol=3e-7 * size)
    mean, stderr = marginals(networks, masks)
    expected_mean, expected_stderr = marginals_reference(networks, masks)
    np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=3e-7 * size)
    np.testing.assert_allclose(stderr, expected_stderr, rtol=1e-3, atol=3e-7 * size)


def test_differences_near_a_saturated_sigmoid_keep_their_digits() -> None:
    """f is within 1e-7 of 1, where float32 has no digits left for what a player adds."""
    networks = random_networks(12, 24)
    networks = replace(networks, output_bias=np.array([17.0], dtype=np.float32))
    masks = random_masks(12)
    assert predict_reference(networks, masks).min() > 1 - 1e-5
    expected, _ = marginals_reference(networks, masks)
    np.testing.assert_allclose(marginals(networks, masks)[0], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_thread_counts_agree_to_the_bit() -> None:
    networks, masks = random_networks(32, 64, 2), random_masks(32, 5_000)
    results = []
    for count in (1, 2, 5):
        _C.set_num_threads(count)
        results.append([predict_logits(networks, masks), *marginals(networks, masks), *flips(networks, masks)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_marginals_of_many_masks() -> None:
    """More masks than one float32 sum takes, and enough for uneven ranges."""
    networks, masks = random_networks(6, 12), random_masks(6, 20_011)
    assert_flips(networks, masks)


def test_marginals_hold_nothing_of_the_size_of_masks_times_players() -> None:
    networks, masks = random_networks(64, 128), random_masks(64, 50_000)
    tracemalloc.start()
    marginals(networks, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # the packed masks are 400 kB; a byte for each mask and player would be 3.2 MB


def test_no_masks() -> None:
    networks = random_networks(5, 7, 2)
    nothing = np.empty((0, 5), dtype=bool)
    assert predict_logits(networks, nothing).shape == (0, 2)
    worths, flipped = flips(networks, nothing)
    assert (worths.shape, flipped.shape) == ((0,), (0, 5))
    for few in (nothing, np.ones((1, 5), dtype=bool)):
        with pytest.raises(RequestError, match="at least 2 masks"):
            marginals(networks, few)


@pytest.mark.parametrize("function", [predict_logits, predict, flips, marginals])
def test_bad_masks_are_refused(function: object) -> None:
    networks = random_networks(5, 7)
    for masks, message in [
        (np.ones((3, 6), dtype=bool), r"shape \[M, 5\]"),
        (np.ones((3, 5), dtype=np.uint8), "dtype bool"),
        ([[True] * 5] * 3, "NumPy array"),
    ]:
        with pytest.raises(RequestError, match=message):
            function(networks, masks)  # type: ignore[operator]


def test_bad_weights_are_refused() -> None:
    networks = random_networks(5, 7)
    for value in (np.inf, np.nan):
        w = networks.hidden_weight.copy()
        w[0, 2, 1] = value
        with pytest.raises(RequestError, match="1 of 35 numbers of hidden_weight are NaN or infinite"):
            replace(networks, hidden_weight=w)
    with pytest.raises(RequestError, match=r"output_bias \[E\]"):
        replace(networks, output_bias=np.zeros(2, dtype=np.float32))
    with pytest.raises(RequestError, match="dtype float32, not float64"):
        replace(networks, output_bias=np.zeros(1))
    with pytest.raises(RequestError, match="activation must be one of celu, relu, gelu, tanh"):
        replace(networks, activation="selu")
    with pytest.raises(RequestError, match="rescale the network"):
        predict(replace(networks, output_weight=networks.output_weight * np.float32(1e31)), random_masks(5))


def test_the_core_checks_again() -> None:
    """What the Python face refuses would crash or read past the end, were the core called by itself."""
    networks, packed = random_networks(5, 7), _C.pack_masks(random_masks(5))
    with pytest.raises(ValueError, match="packed: expected a C-contiguous numpy array uint64"):
        _C.predict_logits(networks, packed[:, :0])
    with pytest.raises(ValueError, match="bit set"):
        _C.predict_logits(networks, packed | np.uint64(1 << 40))
    with pytest.raises(TypeError, match="got dtype int64"):
        _C.marginals(networks, packed.astype(np.int64))
