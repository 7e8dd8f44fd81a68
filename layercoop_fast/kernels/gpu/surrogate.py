"""An ensemble of networks over masks: values, and what each player adds to them.

The formulas are those of `kernels/reference/networks.py`. One of the two masks of a marginal is m itself, the other has
one player flipped: x ± w instead of x, for each of H units. Where no pre-activation can leave ±80, celu takes no
exponential for it: e^(x ± w) = e^x · e^±w.

Values are fp32; sums over masks come in blocks of some ten, which are added up in float64. Nothing of the size [masks,
players] is held, only the pre-activations [E, H, M] of one pass.

Why not a library: a batched MLP of M·n masks would compute every pre-activation again, n times the work, and is bound
by its exponentials even so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, blocks, launch, power_of_two
from layercoop_fast.kernels.gpu.tuning import chosen
from layercoop_fast.kernels.networks import Networks

ACTIVATIONS = {"celu": 0, "relu": 1, "gelu": 2, "tanh": 3}
FACTORED_BELOW = 80.0
# Masks of one pass: the pre-activations of each take 4·E·H bytes.
MOST_MASKS = 1 << 16

CONFIGS = {
    "celu": Config("celu", {"MASKS": 16}, warps=4),
    "many": Config("many", {"MASKS": 32}, warps=8),
    "logits": Config("logits", {"MASKS": 32, "UNITS": 32, "PLAYERS": 32}, warps=4),
}


@dataclass(frozen=True)
class DeviceNetworks:
    """Networks as tensors on a device: see `layercoop_fast.kernels.networks.Networks`.

    Attributes:
        factored: whether every pre-activation stays within ±80, so that exponentials of its parts may be multiplied.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor
    activation: str
    sigmoid: bool
    factored: bool

    @classmethod
    def of(cls, networks: Networks, device: torch.device | str) -> DeviceNetworks:
        """Copy networks to a device."""
        arrays = (networks.hidden_weight, networks.hidden_bias, networks.output_weight, networks.output_bias)
        w, b, v, c = (torch.tensor(array, device=device) for array in arrays)
        reach = np.abs(networks.hidden_bias).astype(np.float64) + np.abs(networks.hidden_weight).sum(
            -1, dtype=np.float64
        )
        factored = networks.activation == "celu" and float(reach.max()) < FACTORED_BELOW
        return cls(w, b, v, c, networks.activation, networks.output == "sigmoid", factored)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """act(x); differences near 0 lose no more than fp32's rounding of 1."""
    if ACTIVATION == 0:
        result = tl.where(x > 0, x, tl.exp(tl.minimum(x, 0.0)) - 1)
    elif ACTIVATION == 1:
        result = tl.maximum(x, 0.0)
    elif ACTIVATION == 2:
        result = 0.5 * x * (1 + tl.erf(0.7071067811865476 * x))
    else:
        result = 1 - 2 / (tl.exp(2 * x) + 1)
    return result


@triton.jit
def _hidden(
    masks, weight, bias, output_weight, output_bias, inner, logits, count, networks, units, players,
    MASKS: tl.constexpr, UNITS: tl.constexpr, PLAYERS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Pre-activations of masks into inner [E, H, M], or, without it, logits [M, E]."""
    network = tl.program_id(1)
    mask = tl.program_id(0) * MASKS + tl.arange(0, MASKS)
    total = tl.zeros((MASKS,), dtype=tl.float32)
    for first in range(0, units, UNITS):
        unit = first + tl.arange(0, UNITS)
        x = tl.zeros((MASKS, UNITS), dtype=tl.float32)
        for start in range(0, players, PLAYERS):
            player = start + tl.arange(0, PLAYERS)
            kept = tl.load(
                masks + mask.to(tl.int64)[:, None] * players + player[None, :],
                mask=(mask < count)[:, None] & (player < players)[None, :], other=0,
            ).to(tl.float32)  # fmt: skip
            w = tl.load(
                weight + (network * units + unit)[None, :] * players + player[:, None],
                mask=(unit < units)[None, :] & (player < players)[:, None], other=0.0,
            )  # fmt: skip
            x = tl.dot(kept, w, x, input_precision="ieee")
        x += tl.load(bias + network * units + unit, mask=unit < units, other=0.0)[None, :]
        if inner is not None:
            place = (network * units + unit).to(tl.int64)[None, :] * count + mask[:, None]
            tl.store(inner + place, x, mask=(mask < count)[:, None] & (unit < units)[None, :])
        else:
            v = tl.load(output_weight + network * units + unit, mask=unit < units, other=0.0)
            total += tl.sum(activated(x, ACTIVATION) * v[None, :], axis=1)
    if logits is not None:
        total += tl.load(output_bias + network)
        tl.store(logits + mask.to(tl.int64) * networks + network, total, mask=mask < count)


@triton.jit
def _flips(
    masks, inner, weight, output_weight, output_bias, sums, count, networks, units, players,
    MASKS: tl.constexpr, PLAYERS: tl.constexpr, ACTIVATION: tl.constexpr, FACTORED: tl.constexpr,
    SIGMOID: tl.constexpr,
):  # fmt: skip
    """Sums over a block of masks of the marginals and of their squares: [2, blocks, n]."""
    mask = tl.program_id(0) * MASKS + tl.arange(0, MASKS)
    player = tl.program_id(1) * PLAYERS + tl.arange(0, PLAYERS)
    inside = (mask < count)[:, None] & (player < players)[None, :]
    kept = tl.load(masks + mask.to(tl.int64)[:, None] * players + player[None, :], mask=inside, other=0) != 0
    value = tl.zeros((MASKS,), dtype=tl.float32)
    neighbour = tl.zeros((MASKS, PLAYERS), dtype=tl.float32)
    for network in range(networks):
        z = tl.zeros((MASKS,), dtype=tl.float32)
        flipped = tl.zeros((MASKS, PLAYERS), dtype=tl.float32)
        for unit in range(units):
            row = network * units + unit
            x = tl.load(inner + row.to(tl.int64) * count + mask, mask=mask < count, other=0.0)
            w = tl.load(weight + row * players + player, mask=player < players, other=0.0)
            v = tl.load(output_weight + row)
            z += v * activated(x, ACTIVATION)
            moved = x[:, None] + tl.where(kept, -w[None, :], w[None, :])
            if FACTORED:
                grown, shrunk = tl.exp(w), tl.exp(-w)
                power = tl.exp(x)[:, None] * tl.where(kept, shrunk[None, :], grown[None, :])
                # celu(y) = max(y, min(e^y − 1, 0)), since e^y − 1 >= y
                flipped += v * tl.maximum(moved, tl.minimum(power - 1, 0.0))
            else:
                flipped += v * activated(moved, ACTIVATION)
        c = tl.load(output_bias + network)
        z += c
        flipped += c
        if SIGMOID:
            value += 1 / (1 + tl.exp(-z))
            neighbour += 1 / (1 + tl.exp(-flipped))
        else:
            value += z
            neighbour += flipped
    gain = (neighbour - value[:, None]) / networks
    gain = tl.where(inside, tl.where(kept, -gain, gain), 0.0)
    place = sums + tl.program_id(0) * players + player
    tl.store(place, tl.sum(gain, axis=0), mask=player < players)
    tl.store(place + tl.num_programs(0) * players, tl.sum(gain * gain, axis=0), mask=player < players)


def launch_logits(networks: DeviceNetworks, masks: Tensor, logits: Tensor, *, config: Config | None = None) -> None:
    """Fill logits fp32 [M, E] of masks bool [M, n]."""
    _launch_hidden(networks, masks, None, logits, config)


def _launch_hidden(
    networks: DeviceNetworks, masks: Tensor, inner: Tensor | None, logits: Tensor | None, config: Config | None
) -> None:
    ensemble, units, players = networks.hidden_weight.shape
    config = config or CONFIGS["logits"]
    launch(
        _hidden, (blocks(masks.shape[0], config.blocks["MASKS"]), ensemble), masks, networks.hidden_weight,
        networks.hidden_bias, networks.output_weight, networks.output_bias, inner, logits, masks.shape[0], ensemble,
        units, players, config=config, ACTIVATION=ACTIVATIONS[networks.activation],
    )  # fmt: skip


def launch_marginals(networks: DeviceNetworks, masks: Tensor, *, config: Config | None = None) -> Tensor:
    """Sums over masks bool [M, n] of the marginals and of their squares: float64 [2, n]."""
    ensemble, units, players = networks.hidden_weight.shape
    config = config or chosen("marginals", (players, units), CONFIGS, "celu")
    wide = min(power_of_two(players), 64)
    totals = masks.new_zeros((2, players), dtype=torch.float64)
    for first in range(0, masks.shape[0], MOST_MASKS):
        some = masks[first : first + MOST_MASKS]
        count = some.shape[0]
        tiles = blocks(count, config.blocks["MASKS"])
        inner = masks.new_empty((ensemble, units, count), dtype=torch.float32)
        sums = masks.new_empty((2, tiles, players), dtype=torch.float32)
        _launch_hidden(networks, some, inner, None, None)
        launch(
            _flips, (tiles, blocks(players, wide)), some, inner, networks.hidden_weight, networks.output_weight,
            networks.output_bias, sums, count, ensemble, units, players, config=config, PLAYERS=wide,
            ACTIVATION=ACTIVATIONS[networks.activation], FACTORED=networks.factored, SIGMOID=networks.sigmoid,
        )  # fmt: skip
        totals += sums.sum(1, dtype=torch.float64)
    return totals
