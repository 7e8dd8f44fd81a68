"""Masks by the plan, against the published way and against skipping without sharing; same model, same text, one run.

    python benchmarks/engine/bench_evaluate.py --calibration novels.txt [--masks 500] [--model DIR] [--dtype bfloat16]

published  a removed layer's parameters are cloned, zeroed, and restored after; the whole model runs for every mask
skip       every mask runs its kept blocks from the embedding on (what a careful user would write)
plan       layercoop_fast: every distinct kept prefix once

The two slow ways run on a sample of the masks (`--sample`, stated in the output) and are scaled to all of them, mask by
mask; a mask's time does not depend on the others there. All three must agree on every mask they share. Ends in one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.engine.plan import count_evaluations
from layercoop_fast.game.utility import token_nll
from layercoop_fast.progress import Bars


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--sample", type=int, default=10, help="masks that the two slow ways run")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    with Bars() as bars:
        game = ModelGame.from_pretrained(
            arguments.model or str(small_model()),
            arguments.calibration,
            dtype=arguments.dtype,
            on_progress=bars.update,
        )
        masks = stratified_masks(game.n_players, arguments.masks, seed=arguments.seed)
        chosen = np.random.default_rng(arguments.seed).choice(
            len(masks), min(arguments.sample, len(masks)), replace=False
        )
        sample = masks[np.sort(chosen)]
        published(game, sample[:1]), skip(game, sample[:1])  # warm-up
        published_seconds, published_nll = published(game, sample)
        skip_seconds, skip_nll = skip(game, sample)
        started = time.perf_counter()
        measured = game.evaluate(masks)
        plan_seconds = time.perf_counter() - started
    plan_nll = measured.nll[np.sort(chosen)]
    floor = count_evaluations(np.concatenate([masks, np.ones((1, game.n_players), bool)]))
    head_seconds = head(game)
    scale = len(masks) / len(sample)
    kept_scale = masks.sum() / sample.sum()
    # Kept blocks and heads scale separately: the sample's masks do not keep exactly the average number of blocks.
    skip_total = (skip_seconds - head_seconds * len(sample)) * kept_scale + head_seconds * len(masks)
    result = {
        "benchmark": "engine/evaluate",
        "machine": machine(),
        "model": game.checkpoint.name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "windows": [game.windows.n_windows, int(game.calibration.ids.shape[1])],
        "masks": len(masks),
        "unique": floor.unique,
        "sample": len(sample),
        "layer_evals": {
            "published": int(masks.size),
            "skip": int(masks.sum()),
            "plan": game.evaluations.layer_evals,
            "trie": floor.plan,
        },
        "seconds": {
            "published": round(published_seconds * scale, 2),
            "skip": round(skip_total, 2),
            "plan": round(plan_seconds, 2),
            "head_a_mask": round(head_seconds, 4),
        },
        "ratio": {
            "published_over_plan": round(published_seconds * scale / plan_seconds, 2),
            "skip_over_plan": round(skip_total / plan_seconds, 2),
        },
        "largest_nll_difference": {
            "published": float(np.abs(published_nll - plan_nll).max()),
            "skip": float(np.abs(skip_nll - plan_nll).max()),
        },
    }
    sys.stdout.write(json.dumps(result) + "\n")


def published(game: ModelGame, masks: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[float, np.ndarray[Any, Any]]:
    """Clone, zero, run everything, restore: seconds and mean NLLs."""
    found = []
    started = time.perf_counter()
    for mask in masks:
        backup = {}
        with torch.inference_mode():
            for layer in np.flatnonzero(~mask):
                for name, parameter in game.skeleton.blocks[layer].named_parameters():
                    backup[layer, name] = parameter.clone()
                    parameter.zero_()
            logits = game.checkpoint.model(input_ids=game.calibration.ids, use_cache=False).logits
            found.append(float(token_nll(logits, game.calibration.ids).double().mean()))
            for (layer, name), values in backup.items():
                game.skeleton.blocks[layer].get_parameter(name).copy_(values)
    return time.perf_counter() - started, np.array(found)


def skip(game: ModelGame, masks: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[float, np.ndarray[Any, Any]]:
    """Run each mask's kept blocks, nothing shared: seconds and mean NLLs."""
    found = []
    context = game.windows.context(1)
    started = time.perf_counter()
    with torch.inference_mode():
        for mask in masks:
            hidden = context.embedding
            for layer in np.flatnonzero(mask):
                hidden = context.run(int(layer), hidden)
            found.append(float(game.score_state(hidden).mean()))
    return time.perf_counter() - started, np.array(found)


def head(game: ModelGame, repeats: int = 5) -> float:
    """Median seconds of scoring one state."""
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            started = time.perf_counter()
            game.score_state(game.windows.context(1).embedding)
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
