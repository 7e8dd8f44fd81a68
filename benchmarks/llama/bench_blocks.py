"""Fast blocks and the fused head against their matrix products alone, and against the model's own modules; one run.

    python benchmarks/llama/bench_blocks.py --calibration novels.txt [--masks 40] [--clock cpu]
    python benchmarks/llama/bench_blocks.py --random 16x2048 --masks 3
    python benchmarks/llama/bench_blocks.py --family gemma3 --random 6x1152 --masks 6 --dtype float32

block   one block on 1 and on 4 states: the model's own, ours, its products alone, our attention and torch's
head    scoring one state: the model's own head with torch's cross-entropy, ours, its product alone
plan    a game of stratified masks from start to end, against the same plan with products only (same shapes, counts,
        dtype and torch, head included), against products and our attention, and against the model's own modules, all
        alternating

Ends in one JSON line; times are milliseconds, the fastest of a few repeats.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import CLOCKS, best, set_up
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.kernels.attention import causal_attention
from layercoop_fast.kernels.linear_cross_entropy import TILE_WORDS
from layercoop_fast.llama.cpu_block import FastBlock
from layercoop_fast.masked.forward import run_plan
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.scoring import FusedScorer
from layercoop_fast.masked.units import FastUnits
from layercoop_fast.texts.calibration import Calibration

Clock = Callable[[], float]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--random", metavar="LAYERSxHIDDEN", help="a model with random weights of this size instead")
    parser.add_argument("--family", choices=RANDOM, default="llama", help="of the model with random weights")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--masks", type=int, default=40)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    now = set_up(arguments.clock)
    if arguments.random:
        game = random_game(arguments.family, arguments.random, arguments.dtype)
    else:
        game = ModelGame.from_pretrained(
            arguments.model or str(small_model()), arguments.calibration, dtype=arguments.dtype
        )
    general = ModelGame(game.checkpoint, game.calibration, skeleton=game.masked.skeleton, block_path="hf")
    if not isinstance(game.masked.units, FastUnits) or not isinstance(game.masked.scorer, FusedScorer):
        raise SystemExit(
            f"no fast path for this model: blocks {game.masked.units.path}, head {game.masked.scorer.path}"
        )
    with torch.inference_mode():
        result = {
            "benchmark": "engine/blocks",
            "machine": machine(),
            "model": game.checkpoint.name.rstrip("/").rsplit("/", 1)[-1],
            "dtype": arguments.dtype,
            "clock": arguments.clock,
            "threads": torch.get_num_threads(),
            "windows": list(game.calibration.ids.shape),
            "block": {str(states): block(game, general, states, now, arguments.repeats) for states in (1, 4)},
            "head": head(game, general, now, arguments.repeats),
            "plan": plan(game, general, arguments.masks, now, arguments.repeats),
        }
    sys.stdout.write(json.dumps(result) + "\n")


def block(game: ModelGame, general: ModelGame, states: int, now: Clock, repeats: int) -> dict[str, float]:
    """One block in the middle of the model."""
    layer = game.masked.skeleton.n_layers // 2
    fast = fast_blocks(game)[layer]
    embedding = game.masked.windows.context(1).embedding
    sources = [embedding.clone() for _ in range(states)]
    targets = [embedding.clone() for _ in range(states)]
    rows = states * embedding.shape[0] * embedding.shape[1]
    attend = Products(game, attention=True)
    queries, keys, values = split_heads(fast, rows)
    found = {
        "hf": best(now, lambda: general.masked.units.run(layer, sources, targets), repeats),
        "fast": best(now, lambda: game.masked.units.run(layer, sources, targets), repeats),
        "products": best(now, lambda: Products(game).run(layer, sources, targets), repeats),
        "attention": best(now, lambda: attend.attend(fast, rows), repeats),
        "sdpa": best(
            now,
            lambda: torch.nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=fast.parts.scale, enable_gqa=True
            ),
            repeats,
        ),
    }
    milliseconds = {name: round(1e3 * seconds, 3) for name, seconds in found.items()}
    products = found["products"]
    return {
        **milliseconds,
        "hf_over_fast": round(found["hf"] / found["fast"], 3),
        "products_over_fast": round(products / found["fast"], 3),
        "products_and_attention_over_fast": round((products + found["attention"]) / found["fast"], 3),
        "products_over_hf": round(products / found["hf"], 3),
    }


def head(game: ModelGame, general: ModelGame, now: Clock, repeats: int) -> dict[str, float]:
    """Scoring one state."""
    state = game.masked.windows.context(1).embedding[: game.masked.windows.n_windows]
    products = Products(game)
    found = {
        "hf": best(now, lambda: general.masked.scorer.score(state), repeats),
        "fused": best(now, lambda: game.masked.scorer.score(state), repeats),
        "product": best(now, lambda: products.score(0, state), repeats),
    }
    return {
        **{name: round(1e3 * seconds, 3) for name, seconds in found.items()},
        "hf_over_fused": round(found["hf"] / found["fused"], 3),
        "product_over_fused": round(found["product"] / found["fused"], 3),
    }


def plan(game: ModelGame, general: ModelGame, n_masks: int, now: Clock, repeats: int) -> dict[str, Any]:
    """A plan whole, by the model's own modules, its products alone, and its products with our attention, in turn."""
    made = build_plan(game.masked.players.unit_masks(stratified_masks(game.n_players, n_masks, seed=0)))

    def whole(game: ModelGame) -> None:
        run_plan(game.masked.windows, made, lambda _, state: game.masked.scorer.score(state), units=game.masked.units)

    def only(products: Products) -> Callable[[], None]:
        return lambda: run_plan(game.masked.windows, made, products.score, units=products)

    ways = {
        "whole": lambda: whole(game),
        "hf": lambda: whole(general),
        "products": only(Products(game)),
        "with_attention": only(Products(game, attention=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(max(1, repeats // 2)):
        for name, way in ways.items():
            started = now()
            way()
            seconds[name].append(now() - started)
    found = {name: min(times) for name, times in seconds.items()}
    return {
        "masks": made.n_unique,
        "layer_evals": made.scheduled,
        "trie": made.plan,
        **{name: round(1e3 * value, 1) for name, value in found.items()},
        "hf_over_whole": round(found["hf"] / found["whole"], 3),
        "products_over_whole": round(found["products"] / found["whole"], 3),
        "products_and_attention_over_whole": round(found["with_attention"] / found["whole"], 3),
    }


class Products:
    """Units and a scorer that do the matrix products of the fast path and nothing else (but attention, where asked)."""

    path = "fast"  # so that batches are as wide as those of the fast path
    bytes_a_row = 0

    def __init__(self, game: ModelGame, *, attention: bool = False) -> None:
        assert isinstance(game.masked.scorer, FusedScorer)
        self.blocks = fast_blocks(game)
        self.products = game.masked.units.products
        self.attention = attention
        self.weight = game.masked.scorer.head.projection.weight
        self.hidden = game.masked.scorer._inputs(
            game.masked.windows.context(1).embedding[: game.masked.windows.n_windows]
        )
        self.logits = self.hidden.new_empty(len(self.hidden), TILE_WORDS)

    def run(self, unit: int, sources: Sequence[Tensor], targets: Sequence[Tensor], _: Tensor | None = None) -> None:
        """The four products of a block on so many rows; the states are not looked at."""
        fast = self.blocks[unit]
        rows = sum(state.shape[0] * state.shape[1] for state in sources)
        hidden = fast.state_shape[1]
        normed, delta = (fast.workspace.matrix(name, rows, hidden, fast.dtype) for name in ("normed", "delta"))
        fast.qkv(normed, out=fast.workspace.matrix("wide", rows, fast.qkv.out_features, fast.dtype))
        if self.attention:
            self.attend(fast, rows)
        fast.output(fast.workspace.matrix("inner", rows, fast.parts.heads * fast.parts.head_dim, fast.dtype), out=delta)
        fast.gate_up(normed, out=fast.workspace.matrix("wide", rows, fast.gate_up.out_features, fast.dtype))
        fast.down(fast.workspace.matrix("inner", rows, fast.gate_up.out_features // 2, fast.dtype), out=delta)

    def attend(self, fast: FastBlock, rows: int) -> None:
        """Our attention on whatever stands in the workspace."""
        qkv = fast.workspace.matrix("wide", rows, fast.qkv.out_features, fast.dtype)
        out = fast.workspace.matrix("inner", rows, fast.parts.heads * fast.parts.head_dim, fast.dtype)
        parts, rope = fast.parts, fast.rope
        causal_attention(
            qkv,
            rope.tokens,
            parts.heads,
            parts.kv_heads,
            parts.scale,
            sliding_window=rope.sliding_window,
            cap=parts.score_cap,
            out=out,
        )

    def score(self, _: int, state: Tensor) -> None:
        """The head's product, tile by tile."""
        for first in range(0, len(self.weight), TILE_WORDS):
            words = self.weight[first : first + TILE_WORDS]
            torch.mm(self.hidden, words.t(), out=self.logits[:, : len(words)])


def fast_blocks(game: ModelGame) -> list[FastBlock]:
    """The game's blocks, all of which have a fast form here."""
    assert isinstance(game.masked.units, FastUnits)
    return [found for found in game.masked.units.blocks if found is not None]


def split_heads(fast: FastBlock, rows: int) -> list[Tensor]:
    """Queries, keys and values as torch's attention takes them, [W, heads, T, D]."""
    tokens = len(fast.rope.cos)
    counts = (fast.parts.heads, fast.parts.kv_heads, fast.parts.kv_heads)
    return [torch.randn(rows // tokens, count, tokens, fast.parts.head_dim).to(fast.dtype) for count in counts]


def llama(layers: int, hidden: int) -> PreTrainedModel:
    """A llama of heads 64 wide."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 64 // 4),
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def gemma3(layers: int, hidden: int) -> PreTrainedModel:
    """A Gemma 3 of the sizes of the models with 270 million (hidden 640) and 1 billion parameters (hidden 1,152)."""
    config = Gemma3TextConfig(
        hidden_size=hidden,
        intermediate_size=2048 if hidden == 640 else 6 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        vocab_size=VOCABULARY,
    )
    return Gemma3ForCausalLM(config)


VOCABULARY = 32_000
RANDOM = {"llama": llama, "gemma3": gemma3}


def random_game(family: str, size: str, dtype: str) -> ModelGame:
    """A model with random weights on ten windows of random tokens."""
    layers, hidden = (int(number) for number in size.split("x"))
    torch.manual_seed(0)
    model = RANDOM[family](layers, hidden).eval().to(getattr(torch, dtype))
    ids = torch.randint(VOCABULARY, (10, 128))
    return ModelGame(Checkpoint(model, None, f"random {family} {size}"), Calibration(ids, "random"))


if __name__ == "__main__":
    main()
