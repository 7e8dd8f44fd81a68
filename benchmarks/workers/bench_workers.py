"""Local workers against one process with as many threads; and the sharing that cutting masks for workers loses.

    python benchmarks/workers/bench_workers.py --calibration novels.txt [--masks 300] [--model DIR] [--repeats 1]

Two workers of one thread each, and one process of two threads, measure the same masks of the published strata; starting
processes and opening the model is not counted. Then the cut table, which needs no model. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.masked.plan import count_evaluations
from layercoop_fast.workers.cut import sharing

CUT_WORKERS = (1, 2, 8, 16, 32, 64, 128)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--masks", type=int, default=300)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="each way in turn, so often; the best of each counts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    model = arguments.model or str(small_model())
    options = {"windows": arguments.windows, "tokens": arguments.tokens, "dtype": "bfloat16"}
    seconds: dict[str, list[float]] = {"one process": [], "workers": []}
    evaluations: dict[str, int] = {}
    numbers = {}
    masks = np.empty((0, 0), dtype=np.bool_)
    for _ in range(arguments.repeats):
        for way, workers in (("one process", None), ("workers", arguments.workers)):
            game = ModelGame.from_pretrained(model, arguments.calibration, workers=workers, **options)
            masks = stratified_masks(game.n_players, arguments.masks, seed=arguments.seed)
            assert game.fingerprints  # the workers are there
            game.evaluate(np.ones((1, game.n_players), dtype=np.bool_))  # what is slow once is over
            started = time.perf_counter()
            measured = game.evaluate(masks)
            seconds[way].append(round(time.perf_counter() - started, 2))
            evaluations[way] = game.evaluations.layer_evals
            numbers[way] = measured.nll
            game.close()
    result = {
        "benchmark": "game/workers",
        "machine": machine(),
        "model": model.rstrip("/").rsplit("/", 1)[-1],
        "masks": len(masks),
        "unique": count_evaluations(masks).unique,
        "threads": {"one process": torch.get_num_threads(), "each of the workers": measured_threads(arguments.workers)},
        "layer_evals": evaluations,
        "seconds": seconds,
        "throughput_of_workers_over_one_process": round(min(seconds["one process"]) / min(seconds["workers"]), 3),
        "largest_nll_difference": float(np.abs(numbers["one process"] - numbers["workers"]).max()),
        "cut": {
            layers: [asdict(found) for found in sharing(stratified_masks(layers, 8000), CUT_WORKERS, head_cost=2.0)]
            for layers in (32, 80)
        },
    }
    sys.stdout.write(json.dumps(result) + "\n")


def measured_threads(workers: int) -> int:
    """Threads that each worker has."""
    return max(1, torch.get_num_threads() // workers)


if __name__ == "__main__":
    main()
