"""Networks with random weights."""

from __future__ import annotations

import numpy as np

from layercoop_fast.surrogate.networks import Activation, Networks, Output


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
