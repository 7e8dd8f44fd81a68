"""Masks by the plan, against the published way and against skipping without sharing; same model, same text, one run.

    python benchmarks/masked/bench_evaluate.py --calibration novels.txt [--masks 500] [--model DIR] [--dtype bfloat16]

published  a removed layer's parameters are cloned, zeroed, and restored after; the whole model runs for every mask, on
           its own modules
skip       every mask runs its kept blocks from the embedding on, on our fast blocks (what a careful user would write)
plan       layercoop_fast: every distinct kept prefix once, on our fast blocks

The two slow ways run on a sample of the masks (`--sample`) and are scaled by the blocks they run: their time does not
depend on the other masks. The plan runs whole, or on `--part` of the masks that are neighbours in its order, scaled by
block evaluations. Times of blocks and of the head are taken apart. All ways must agree on every mask they share. Ends
in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import CLOCKS, set_up
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.masked.forward import run_plan, split_memory
from layercoop_fast.masked.plan import build_plan, count_evaluations
from layercoop_fast.masked.scoring import token_nll

Clock = Callable[[], float]
Masks = NDArray[np.bool_]
Timed = tuple[float, float, NDArray[np.float64]]
"""Seconds in blocks, seconds in the head, mean NLL of each mask."""


SETS: dict[str, Callable[[int, int, int], Masks]] = {
    "strata": lambda n, count, seed: stratified_masks(n, count, seed=seed),
    "leave-one-out": lambda n, count, seed: ~np.eye(n, dtype=np.bool_),
    "pairs": lambda n, count, seed: (
        ~np.array([np.isin(np.arange(n), pair) for pair in combinations(range(n), 2)], dtype=np.bool_)
    ),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--part", type=int, help="masks that the plan really runs; default all")
    parser.add_argument("--sample", type=int, default=10, help="masks that the two slow ways run")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--states", type=int, help="stored states the plan may use; default as many as it likes")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--set", choices=sorted(SETS), default="strata", help="which masks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()

    now = set_up(arguments.clock)
    game = ModelGame.from_pretrained(
        arguments.model or str(small_model()),
        arguments.calibration,
        dtype=arguments.dtype,
        windows=arguments.windows,
    )
    masks = SETS[arguments.set](game.n_players, arguments.masks, arguments.seed)
    # Neighbours in the plan's order, from its middle: they share as the masks of the whole plan do.
    order = build_plan(masks).unique_rows
    part = masks[order] if arguments.part is None else masks[middle(order, arguments.part)]
    chosen = np.random.default_rng(arguments.seed).choice(len(part), min(arguments.sample, len(part)), replace=False)
    sample = part[chosen]
    with torch.inference_mode():
        published(game, sample[:1], now), skip(game, sample[:1], now)  # warm-up
        slow = published(game, sample, now)
        skipped = skip(game, sample, now)
        done, ours = planned(game, part, arguments.states, now)
    counts = count_evaluations(masks)
    scheduled = build_plan(masks, arguments.states).scheduled
    seconds = {
        "published": scaled(slow, len(masks) / len(sample), len(masks) / len(sample)),
        "skip": scaled(skipped, masks.sum() / sample.sum(), len(masks) / len(sample)),
        "skip_unique": scaled(skipped, masks[order].sum() / sample.sum(), counts.unique / len(sample)),
        "plan": scaled(ours, scheduled / done, counts.unique / len(part)),
    }
    evaluations = {
        "published": int(masks.size),
        "skip": int(masks.sum()),
        "skip_unique": int(masks[order].sum()),
        "plan": scheduled,
        "trie": counts.plan,
    }
    result = {
        "benchmark": "engine/evaluate",
        "machine": machine(),
        "model": game.checkpoint.name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "threads": torch.get_num_threads(),
        "blocks": game.masked.units.path,
        "head": game.masked.scorer.path,
        "windows": list(game.calibration.ids.shape),
        "set": arguments.set,
        "masks": len(masks),
        "unique": counts.unique,
        "part": len(part),
        "sample": len(sample),
        "layer_evals": evaluations,
        "seconds": {way: [round(value, 2) for value in times] for way, times in seconds.items()},
        "over_plan": {way: ratios(seconds[way], seconds["plan"]) for way in ("published", "skip", "skip_unique")},
        # 1 where a plan's evaluation costs no more than one of skipping: all that is saved shows.
        "skip_sharing_realised": {
            way: round(seconds[way][0] / seconds["plan"][0] / (evaluations[way] / scheduled), 3)
            for way in ("skip", "skip_unique")
        },
        "largest_nll_difference": {
            "published": float(np.abs(slow[2] - ours[2][chosen]).max()),
            "skip": float(np.abs(skipped[2] - ours[2][chosen]).max()),
        },
    }
    sys.stdout.write(json.dumps(result) + "\n")


@torch.inference_mode()
def published(game: ModelGame, masks: Masks, now: Clock) -> Timed:
    """Clone, zero, run everything, restore."""
    found, blocks, head = [], 0.0, 0.0
    context = game.masked.skeleton.context(game.calibration.ids)
    for mask in masks:
        started = now()
        backup = {}
        for layer in np.flatnonzero(~mask):
            for name, parameter in game.masked.skeleton.blocks[layer].named_parameters():
                backup[layer, name] = parameter.clone()
                parameter.zero_()
        hidden = context.embedding
        for layer in range(game.masked.skeleton.n_layers):
            hidden = context.run(layer, hidden)
        behind_blocks = now()
        logits = context.logits(hidden)
        found.append(float(token_nll(logits, game.calibration.ids).double().mean()))
        behind_head = now()
        for (layer, name), values in backup.items():
            game.masked.skeleton.blocks[layer].get_parameter(name).copy_(values)
        head += behind_head - behind_blocks
        blocks += now() - started - (behind_head - behind_blocks)
    return blocks, head, np.array(found)


@torch.inference_mode()
def skip(game: ModelGame, masks: Masks, now: Clock) -> Timed:
    """Run each mask's kept blocks, nothing shared."""
    found, blocks, head = [], 0.0, 0.0
    for mask in masks:
        started = now()
        state = game.masked.windows.context(1).embedding.clone()
        for layer in np.flatnonzero(mask):
            game.masked.units.run(int(layer), [state], [state])
        behind_blocks = now()
        found.append(float(game.masked.scorer.score(state).nll.mean()))
        blocks += behind_blocks - started
        head += now() - behind_blocks
    return blocks, head, np.array(found)


def planned(game: ModelGame, masks: Masks, states: int | None, now: Clock) -> tuple[int, Timed]:
    """The game's own way; also the block evaluations it did."""
    most, max_rows = split_memory(game.masked.windows, game.masked.units, game.masked.memory_budget())
    found = np.full(len(masks), np.nan)
    head = 0.0
    started = now()
    plan = build_plan(masks, states or most)

    def score(number: int, state: Tensor) -> None:
        nonlocal head
        before = now()
        found[plan.unique_rows[number]] = game.masked.scorer.score(state).nll.mean()
        head += now() - before

    run_plan(game.masked.windows, plan, score, units=game.masked.units, max_rows=max_rows)
    return plan.scheduled, (now() - started - head, head, found)


def scaled(times: Timed, blocks: float, heads: float) -> tuple[float, float]:
    """Seconds in blocks and in the head, scaled to all masks."""
    return times[0] * float(blocks), times[1] * float(heads)


def ratios(slow: tuple[float, float], fast: tuple[float, float]) -> dict[str, float]:
    """How many times longer the slow way takes, on blocks alone and with the head."""
    return {"blocks": round(slow[0] / fast[0], 2), "whole": round(sum(slow) / sum(fast), 2)}


def middle(order: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many neighbours from the middle of a plan's order."""
    first = max(0, (len(order) - count) // 2)
    return order[first : first + count]


if __name__ == "__main__":
    main()
