"""Sums over all masks of some players, from which every mean marginal by size follows, and where the best masks lie.

The players are split in two, low and high; a mask is (low half, high half). With the halves' pre-activations in tables

    x_eh = low[eh, l] + high[eh, u],    z_e = c_e + Σ_h v_eh · act(x_eh),    f = mean over e of out(z_e)

a mask costs a few instructions a unit: for celu an addition, two multiply-adds, a maximum and a minimum, since
e^(a + b) = e^a · e^b and celu(x) = max(x, min(e^x − 1, 0)). Halves are sorted by size and padded to blocks of one size,
so that all masks of a tile (a block of high halves times one of low halves) keep the same number of players k:

    low_sums[chunk, l]      Σ over the high halves of a chunk (blocks of one size) of f − shift[k]
    high_sums[block, u]     Σ over a block of low halves
    squares[chunk, block]   Σ (f − shift[k])²
    pair_sums[chunk, j, l]  Σ over the high halves of a chunk with their player j               (where asked for)
    peaks[tile]             the largest Σ_e z_e in the tile: the best masks of a size lie in its highest tiles

low, high: fp32 [E·H, L], [E·H, U]; codes: int32 [L], [U], the halves' bits, −1 for padding. Sums are fp32 over at most
some hundred values each; `all_masks.py` adds them up in float64.

Why not a library: a batched network would need 2ⁿ rows in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from layercoop_fast.kernels.gpu.frame import Config, launch
from layercoop_fast.kernels.gpu.surrogate import ACTIVATIONS, activated

# Room for the players of a high half in `pair_sums`.
HIGH_PLAYERS = 16

CONFIGS = {
    "large": Config("large", {"HIGH": 32, "LOW": 128}, warps=4),
    "small": Config("small", {"HIGH": 16, "LOW": 16}, warps=1),
}


@dataclass(frozen=True)
class Tables:
    """What a launch reads. Powers are None where exponentials must not be multiplied.

    Attributes:
        weight: v, fp32 [E·H].
        bias: c, fp32 [E].
        shift: fp32, by the size of low and high half together.
        low_size: int32, the size of the halves of every block of low halves.
        first: int32 [chunks], the first block of high halves of each chunk.
        count: int32 [chunks], the number of its blocks.
        high_size: int32 [chunks], the size of its halves.
        activation: name of the activation.
        sigmoid: whether the output function is a sigmoid.
    """

    low: Tensor
    high: Tensor
    low_power: Tensor | None
    high_power: Tensor | None
    weight: Tensor
    bias: Tensor
    shift: Tensor
    low_code: Tensor
    high_code: Tensor
    low_size: Tensor
    first: Tensor
    count: Tensor
    high_size: Tensor
    activation: str
    sigmoid: bool


@dataclass(frozen=True)
class Found:
    """The results of a launch, as in the module's table."""

    low_sums: Tensor
    high_sums: Tensor
    squares: Tensor
    pair_sums: Tensor | None
    peaks: Tensor | None


@triton.jit
def _tile(
    low, high, low_power, high_power, weight, bias, networks, units, lows, highs, low_at, high_at,
    HIGH: tl.constexpr, LOW: tl.constexpr, ACTIVATION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Σ_e z_e and the mean of f_e, both [HIGH, LOW]."""
    score = tl.zeros((HIGH, LOW), dtype=tl.float32)
    value = tl.zeros((HIGH, LOW), dtype=tl.float32)
    for network in range(networks):
        z = tl.zeros((HIGH, LOW), dtype=tl.float32) + tl.load(bias + network)
        for unit in range(network * units, network * units + units):
            x = tl.load(high + unit * highs + high_at)[:, None] + tl.load(low + unit * lows + low_at)[None, :]
            v = tl.load(weight + unit)
            if low_power is not None:
                power = (
                    tl.load(high_power + unit * highs + high_at)[:, None]
                    * tl.load(low_power + unit * lows + low_at)[None, :]
                )
                z += v * tl.maximum(x, tl.minimum(power - 1, 0.0))
            else:
                z += v * activated(x, ACTIVATION)
        score += z
        if SIGMOID:
            value += 1 / (1 + tl.exp(-z))
        else:
            value += z
    return score, value / networks


@triton.jit
def _enumerate(
    low, high, low_power, high_power, weight, bias, shift, low_code, high_code, low_size, first, count, high_size,
    low_sums, high_sums, squares, pair_sums, peaks, networks, units, lows, highs, low_blocks, high_players,
    HIGH: tl.constexpr, LOW: tl.constexpr, PLAYERS: tl.constexpr, ACTIVATION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    chunk, block = tl.program_id(0) // low_blocks, tl.program_id(0) % low_blocks
    low_at = block * LOW + tl.arange(0, LOW)
    real_low = tl.load(low_code + low_at) >= 0
    about = tl.load(shift + tl.load(low_size + block) + tl.load(high_size + chunk))
    start = tl.load(first + chunk)
    by_low = tl.zeros((LOW,), dtype=tl.float32)
    square = tl.zeros((LOW,), dtype=tl.float32)
    player = tl.arange(0, PLAYERS)
    by_pair = tl.zeros((PLAYERS, LOW), dtype=tl.float32)
    for tile in range(start, start + tl.load(count + chunk)):
        high_at = tile * HIGH + tl.arange(0, HIGH)
        code = tl.load(high_code + high_at)
        real = (code >= 0)[:, None] & real_low[None, :]
        score, value = _tile(
            low, high, low_power, high_power, weight, bias, networks, units, lows, highs, low_at, high_at,
            HIGH, LOW, ACTIVATION, SIGMOID,
        )  # fmt: skip
        value = tl.where(real, value - about, 0.0)
        by_low += tl.sum(value, axis=0)
        square += tl.sum(value * value, axis=0)
        tl.store(high_sums + block * highs + high_at, tl.sum(value, axis=1))
        if peaks is not None:
            peak = tl.max(tl.max(tl.where(real, score, float("-inf")), axis=1), axis=0)
            tl.store(peaks + tile * low_blocks + block, peak)
        if pair_sums is not None:
            kept = (tl.maximum(code, 0)[None, :] >> player[:, None]) & 1
            by_pair = tl.dot(kept.to(tl.float32), value, by_pair, input_precision="ieee")
    tl.store(low_sums + chunk * lows + low_at, by_low)
    tl.store(squares + chunk * low_blocks + block, tl.sum(square, axis=0))
    if pair_sums is not None:
        place = (chunk * high_players + player)[:, None] * lows + low_at[None, :]
        tl.store(pair_sums + place, by_pair, mask=(player < high_players)[:, None])


@triton.jit
def _scores(
    low, high, low_power, high_power, weight, bias, tile_high, tile_low, low_code, high_code, scores, networks, units,
    lows, highs, HIGH: tl.constexpr, LOW: tl.constexpr, ACTIVATION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    low_at = tl.load(tile_low + tl.program_id(0)) * LOW + tl.arange(0, LOW)
    high_at = tl.load(tile_high + tl.program_id(0)) * HIGH + tl.arange(0, HIGH)
    score, _value = _tile(
        low, high, low_power, high_power, weight, bias, networks, units, lows, highs, low_at, high_at,
        HIGH, LOW, ACTIVATION, SIGMOID,
    )  # fmt: skip
    real = (tl.load(high_code + high_at) >= 0)[:, None] & (tl.load(low_code + low_at) >= 0)[None, :]
    place = tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]
    start = tl.program_id(0).to(tl.int64) * HIGH * LOW
    tl.store(scores + start + place, tl.where(real, score, float("-inf")))


def launch_enumerate(tables: Tables, *, high_players: int, top: bool, pairs: bool, config: Config) -> Found:
    """Launch all masks of the tables' halves, with peaks for the best masks (`top`) and with sums by pair."""
    units, lows, highs, chunks, low_blocks = _sizes(tables)
    found = Found(
        low_sums=tables.low.new_empty(chunks, lows),
        high_sums=tables.low.new_empty(low_blocks, highs),
        squares=tables.low.new_empty(chunks, low_blocks),
        pair_sums=tables.low.new_empty(chunks, high_players, lows) if pairs else None,
        peaks=tables.low.new_empty(highs // config.blocks["HIGH"], low_blocks) if top else None,
    )
    launch(
        _enumerate, (chunks * low_blocks,), tables.low, tables.high, tables.low_power, tables.high_power,
        tables.weight, tables.bias, tables.shift, tables.low_code, tables.high_code, tables.low_size, tables.first,
        tables.count, tables.high_size, found.low_sums, found.high_sums, found.squares, found.pair_sums, found.peaks,
        tables.bias.shape[0], units, lows, highs, low_blocks, high_players, config=config, PLAYERS=HIGH_PLAYERS,
        ACTIVATION=ACTIVATIONS[tables.activation], SIGMOID=tables.sigmoid,
    )  # fmt: skip
    return found


def launch_scores(tables: Tables, tile_high: Tensor, tile_low: Tensor, *, config: Config) -> Tensor:
    """Σ_e z_e of the masks of some tiles, int32 [N] each: fp32 [N, HIGH, LOW], −∞ where there is no mask."""
    units, lows, highs, _, _ = _sizes(tables)
    scores = tables.low.new_empty(tile_high.shape[0], config.blocks["HIGH"], config.blocks["LOW"])
    launch(
        _scores, (tile_high.shape[0],), tables.low, tables.high, tables.low_power, tables.high_power, tables.weight,
        tables.bias, tile_high, tile_low, tables.low_code, tables.high_code, scores, tables.bias.shape[0], units, lows,
        highs, config=config, ACTIVATION=ACTIVATIONS[tables.activation], SIGMOID=tables.sigmoid,
    )  # fmt: skip
    return scores


def _sizes(tables: Tables) -> tuple[int, int, int, int, int]:
    units = tables.weight.shape[0] // tables.bias.shape[0]
    return units, tables.low.shape[1], tables.high.shape[1], tables.first.shape[0], tables.low_size.shape[0]
