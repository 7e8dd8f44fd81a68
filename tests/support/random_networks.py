"""Networks with random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layercoop_fast.kernels.networks import Activation, Networks, Output


def random_networks(
    n: int,
    hidden: int,
    n_networks: int = 1,
    *,
    activation: Activation = "celu",
    output: Output = "sigmoid",
    scale: float = 0.3,
    seed: int = 0,
) -> Networks:
    """Normal weights times `scale`, on the small side of saturation for the default."""
    rng = np.random.default_rng([seed, n, hidden, n_networks])
    shapes = [(n_networks, hidden, n), (n_networks, hidden), (n_networks, hidden), (n_networks,)]
    w, b, v, c = (rng.normal(scale=scale, size=shape).astype(np.float32) for shape in shapes)
    return Networks(w, b, v, c, activation, output)


SPIKES = [
    "large columns of both signs",
    "just inside the range",
    "large bias",
    "pre-activations far outside",
    "tiny and huge output weights",
    "output weights of one sign",
    "no output weights",
    "half the units unused",
]


def spiked(name: str) -> Networks:
    """Ten players, a few units, and weights at which e^(a + b) = e^a · e^b could go wrong."""
    networks = random_networks(10, 20, 1, output="linear")
    w, v = networks.hidden_weight.copy(), networks.output_weight.copy()
    b = networks.hidden_bias.copy()
    match name:
        case "large columns of both signs":  # e^100 overflows, e^-100 is 0, and their product should be 1
            w[0, 3, 2], w[0, 3, 5] = 100, -100
        case "just inside the range":
            w[0, 3, :4] = [39.9, -39.9, 39.9, -39.9]
        case "large bias":
            b[0, 7], w[0, 7, 1] = -90, 88
        case "pre-activations far outside":
            w[0, :, :] *= 300
        case "tiny and huge output weights":
            v[0, 0], v[0, 1] = 1e-30, 1e18
        case "output weights of one sign":
            v[:] = -np.abs(v)
        case "no output weights":
            v[:] = 0
        case "half the units unused":
            v[0, ::2] = 0
    return replace(networks, hidden_weight=w, hidden_bias=b, output_weight=v)


def magnitude(networks: Networks) -> float:
    """1 + the largest magnitude that enters a value: float32 can do no better than its rounding where terms cancel."""
    inner = 1 + np.abs(networks.hidden_bias) + np.abs(networks.hidden_weight).sum(-1)
    return float((np.abs(networks.output_weight) * inner).sum(-1).max()) + 1
