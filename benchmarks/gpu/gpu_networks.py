"""An ensemble of surrogate networks: values of masks, what each player adds, and all masks, on the GPU and by C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from chips import wall

from layercoop_fast.kernels import surrogate as native
from layercoop_fast.kernels.gpu import surrogate as gpu
from layercoop_fast.surrogate.networks import Networks


def random_networks(players: int, ensemble: int = 1) -> Networks:
    """Networks of the published shape, 2n hidden units, with weights as small as fitted ones."""
    rng = np.random.default_rng(0)
    shapes = ((ensemble, 2 * players, players), (ensemble, 2 * players), (ensemble, 2 * players), (ensemble,))
    return Networks(*(rng.normal(0, 0.2, shape).astype(np.float32) for shape in shapes))


def bench(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Seconds of each way, the fastest of three calls."""
    players, masks_valued, masks_moved = (8, 40, 10) if tiny else (32, 1 << 20, 80_000)
    seconds: dict[str, float] = {}
    for ensemble in (1, 8):
        networks = random_networks(players, ensemble)
        there = gpu.DeviceNetworks.of(networks, device)
        masks = np.random.default_rng(1).random((masks_valued, players)) < 0.7
        sent = torch.from_numpy(masks).to(device)
        weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
        some, some_sent = masks[:masks_moved], sent[:masks_moved]
        moved = gpu.marginals(there, some_sent)[0].cpu().numpy()
        expected = native.marginals(networks, some)[0]
        assert np.allclose(moved, expected, rtol=1e-3, atol=1e-6), "marginals differ from those of C++"
        for way, work in {
            f"{masks_valued} masks, {ensemble} networks: ours": lambda s=sent, w=weights: gpu.surrogate_logits(s, *w),
            f"{masks_valued} masks, {ensemble} networks: C++": lambda n=networks, m=masks: native.predict_logits(n, m),
            f"marginals of {masks_moved}, {ensemble} networks: ours": lambda t=there, s=some_sent: gpu.marginals(t, s),
            f"marginals of {masks_moved}, {ensemble} networks: C++": lambda n=networks, m=some: native.marginals(n, m),
        }.items():
            seconds[way] = min(wall(work) for _ in range(1 if tiny else 3))
    return {"players": players, "seconds": seconds}
