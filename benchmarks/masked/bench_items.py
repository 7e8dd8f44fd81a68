"""Items with options on a shared context, against scoring each full sequence; same model, items and masks, one run.

    python benchmarks/masked/bench_items.py --calibration novels.txt [--items 25] [--masks 36] [--model DIR]

The items are cut from a text in the proportions of ARC: 5 examples of 40 tokens, a question of 30, 4 options of 10.

shared     layercoop_fast: examples, question and what options share once a mask prefix, on our fast blocks
whole      every option with its question and examples as a sequence of its own, all in one batch, on our fast blocks
whole_hf   the same on the model's own blocks and head: what an evaluation harness does

Masks share prefixes alike in all three (`seconds`, `over_shared`). Under `no_mask_sharing` each mask runs by itself
from the embedding on. The two slow ways run on `--part` of the masks, neighbours in the plan's order, and with
`no_mask_sharing` all ways on `--sample`; times are scaled by block evaluations and heads. The head runs for scored
tokens alone in every way, which a harness does not do: the ratios are on the safe side. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_evaluate import middle, planned, ratios, scaled, skip
from clock import CLOCKS, set_up
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.masked.plan import build_plan, count_evaluations

WAYS = {
    "shared": {"share_context": True, "block_path": "auto"},
    "whole": {"share_context": False, "block_path": "auto"},
    "whole_hf": {"share_context": False, "block_path": "hf"},
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--items", type=int, default=25)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=40, help="of an item: a quarter are an option's")
    parser.add_argument("--masks", type=int, default=36)
    parser.add_argument("--part", type=int, default=4, help="masks that the slow ways run along their plan")
    parser.add_argument("--sample", type=int, default=2, help="masks that all ways run by themselves")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()

    now = set_up(arguments.clock)
    plans, alone, nll, games = {}, {}, {}, {}
    for way, options in WAYS.items():
        game = games[way] = ModelGame.from_pretrained(
            arguments.model or str(small_model()),
            arguments.calibration,
            utility="accuracy",
            windows=arguments.items,
            tokens=arguments.tokens,
            shots=arguments.shots,
            seed=arguments.seed,
            dtype=arguments.dtype,
            **options,
        )
        masks = stratified_masks(game.n_players, arguments.masks, seed=arguments.seed)
        order = build_plan(masks).unique_rows
        part = middle(order, arguments.part)
        run = masks if way == "shared" else masks[part]
        heads = len(order)
        scheduled = build_plan(masks).scheduled
        with torch.inference_mode():
            skip(game, masks[part[:1]], now)  # warm-up
            done, times = planned(game, run, None, now)
            plans[way] = scaled(times, scheduled / done, heads / build_plan(run).n_unique)
            nll[way] = times[2][part] if way == "shared" else times[2]
            sample = masks[order[:: max(1, heads // arguments.sample)][: arguments.sample]]
            times = skip(game, sample, now)
            alone[way] = scaled(times, masks[order].sum() / sample.sum(), heads / len(sample))
        game.masked.windows.free()
    counts = count_evaluations(masks)
    result = {
        "benchmark": "engine/choices",
        "machine": machine(),
        "model": game.checkpoint.name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "threads": torch.get_num_threads(),
        "items": arguments.items,
        "shots": arguments.shots,
        "tokens_of_item": arguments.tokens,
        "paths": {way: [game.masked.units.path, game.masked.scorer.path] for way, game in games.items()},
        "windows": {way: list(game.masked.windows.ids.shape) for way, game in games.items()},
        "tokens_over_shared": round(games["whole"].windows.ids.numel() / games["shared"].windows.ids.numel(), 2),
        "masks": len(masks),
        "unique": counts.unique,
        "layer_evals": {"plan": counts.plan, "no_mask_sharing": int(masks[order].sum())},
        "seconds": {way: [round(value, 2) for value in times] for way, times in plans.items()},
        "over_shared": {way: ratios(plans[way], plans["shared"]) for way in ("whole", "whole_hf")},
        "no_mask_sharing": {
            "seconds": {way: [round(value, 2) for value in times] for way, times in alone.items()},
            "over_shared": {way: ratios(alone[way], alone["shared"]) for way in ("whole", "whole_hf")},
            "over_shared_plan": {way: ratios(alone[way], plans["shared"]) for way in ("whole", "whole_hf")},
        },
        "largest_nll_difference": {way: float(np.abs(nll[way] - nll["shared"]).max()) for way in ("whole", "whole_hf")},
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
