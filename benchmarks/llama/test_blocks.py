"""One block on one and on four states, and head with loss: ours, the model's own modules, and the products alone."""

from __future__ import annotations

import pytest
import torch

from layercoop_fast import ModelGame
from layercoop_fast.kernels.linear_cross_entropy import TILE_WORDS
from layercoop_fast.masked.units import FastUnits


@pytest.fixture(scope="module")
def games(model: str, full: bool) -> dict[str, ModelGame]:
    windows, tokens = (10, 128) if full else (4, 128)
    ours = ModelGame.from_pretrained(model, windows=windows, tokens=tokens)
    own = ModelGame(ours.checkpoint, ours.calibration, skeleton=ours.masked.skeleton, block_path="hf")
    if not isinstance(ours.masked.units, FastUnits):
        pytest.skip(f"this model has no fast blocks here: {ours.masked.units.path}")
    return {"ours": ours, "the model's own": own}


@pytest.mark.parametrize("way", ["ours", "the model's own"])
@pytest.mark.parametrize(
    "states", [pytest.param(n, marks=pytest.mark.benchmark(group=f"block, {n} states")) for n in (1, 4)]
)
def test_block(clock, games: dict[str, ModelGame], way: str, states: int) -> None:
    game = games[way]
    pool = list(game.masked.windows.pool(states))
    for state in pool:
        state.copy_(game.masked.windows.context(1).embedding)
    with torch.inference_mode():
        clock(way, lambda: game.masked.units.run(0, pool, pool), rounds=15)


@pytest.mark.parametrize(
    "states", [pytest.param(n, marks=pytest.mark.benchmark(group=f"block, {n} states")) for n in (1, 4)]
)
def test_block_products(clock, games: dict[str, ModelGame], states: int) -> None:
    game = games["ours"]
    block = game.masked.units.blocks[0]
    rows = states * game.masked.windows.ids.numel()
    weights = [projection.weight for projection in (block.qkv, block.output, block.gate_up, block.down)]
    inputs = [torch.ones(rows, weight.shape[1], dtype=weight.dtype) for weight in weights]
    outputs = [torch.empty(rows, len(weight), dtype=weight.dtype) for weight in weights]

    def products() -> None:
        for x, weight, out in zip(inputs, weights, outputs, strict=True):
            torch.mm(x, weight.t(), out=out)

    with torch.inference_mode():
        clock("products alone", products, rounds=15)


@pytest.mark.benchmark(group="head and loss of a state")
@pytest.mark.parametrize("way", ["ours", "the model's own"])
def test_head(clock, games: dict[str, ModelGame], way: str) -> None:
    game = games[way]
    state = game.masked.windows.context(1).embedding.clone()
    clock(way, lambda: game.masked.scorer.score(state), rounds=9)


@pytest.mark.benchmark(group="head and loss of a state")
def test_head_product(clock, games: dict[str, ModelGame]) -> None:
    game = games["ours"]
    weight = game.checkpoint.model.get_output_embeddings().weight.detach()
    rows = torch.ones(
        len(game.masked.windows.ids) * len(game.masked.windows.scored), weight.shape[1], dtype=weight.dtype
    )

    def product() -> None:
        for words in torch.split(weight, TILE_WORDS):
            rows @ words.t()

    with torch.inference_mode():
        clock("products alone", product, rounds=9)
