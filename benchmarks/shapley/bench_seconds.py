"""Error of a surrogate's Shapley values against the seconds that they take: all masks, or a sample of them.

    python benchmarks/shapley/bench_seconds.py [--players 32] [--plot seconds.html]

The surrogate is one network of the published size (2n hidden units, CELU, sigmoid) with random weights: what a search
asks after its fit. All masks are enumerated; permutations (antithetic) and kernel regression (without interactions,
whose fit grows with the square of the masks) ask the network for a sample of as many masks as a point of the plot says.
Errors are taken against the enumeration, which is exact but for the rounding of fp32: the root of the mean square over
players, over that of the values; of samples the mean over the seeds. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from machine import machine
from random_networks import random_networks

from layercoop_fast import _C
from layercoop_fast.kernels.surrogate import predict
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.report.html.charts import Axis, Point, Series, xy
from layercoop_fast.report.html.page import page
from layercoop_fast.shapley.enumeration import enumerate_masks
from layercoop_fast.shapley.permutation import shapley_values
from layercoop_fast.shapley.regression import kernel_shap

BUDGETS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_024_000)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--players", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", help="HTML file to write")
    arguments = parser.parse_args()
    n = arguments.players
    networks = random_networks(n, 2 * n)
    started = time.perf_counter()
    exact = enumerate_masks(networks).shapley()
    took = time.perf_counter() - started

    def game(masks: Masks) -> Floats:
        worths: Floats = predict(networks, masks)[:, 0]
        return worths

    ways = {
        "permutations": lambda budget, seed: shapley_values(
            game, n_players=n, n_permutations=max(4, budget // (n - 1) // 2 * 2), seed=seed
        ),
        "kernel regression": lambda budget, seed: kernel_shap(
            game, n_players=n, budget=budget, seed=seed, interactions=False
        ),
    }
    rows = {
        name: [measured(partial(way, budget), exact, budget, arguments.seeds) for budget in BUDGETS]
        for name, way in ways.items()
    }
    print(f"all {2**n:,} masks: {took:.2f} s")
    for name, points in rows.items():
        print(f"{name}: " + ", ".join(f"{p['masks']:,}: {p['error']:.1e} in {p['seconds']:.3f} s" for p in points))
    if arguments.plot:
        plot(rows, took, n, arguments.plot)
    result = {
        "benchmark": "shapley/seconds",
        "machine": machine(),
        "threads": _C.num_threads(),
        "players": n,
        "all_masks_seconds": round(took, 3),
        "sampled": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def measured(way: Any, exact: Floats, budget: int, seeds: int) -> dict[str, float]:
    """Mean error and seconds of an estimator over some seeds."""
    errors, seconds = [], []
    for seed in range(seeds):
        started = time.perf_counter()
        values = way(seed).values
        seconds.append(time.perf_counter() - started)
        errors.append(float(np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2))))
    return {"masks": budget, "error": float(np.mean(errors)), "seconds": round(float(np.mean(seconds)), 4)}


def plot(rows: dict[str, list[dict[str, float]]], took: float, n: int, path: str) -> None:
    """Errors over seconds, both axes logarithmic, and the seconds of the enumeration as a line down."""
    series = []
    for colour, (name, points) in enumerate(rows.items(), 1):
        series.append(
            Series(
                name,
                [Point(p["seconds"], p["error"], f"{p['masks']:,} masks: {p['error']:.1e}") for p in points],
                colour,
            )
        )
    errors = [point["error"] for points in rows.values() for point in points]
    said = f"all {2**n:,} masks: {took:.2f} s, exact but for rounding"
    series.append(Series("all masks", [Point(took, max(errors), said), Point(took, 1e-6, said)], 0))
    title = f"Shapley values of a network over {n} players: error against seconds"
    chart = xy(series, Axis("seconds", log=True), Axis("error", log=True), title)
    Path(path).write_text(page(title, chart), encoding="utf-8")


if __name__ == "__main__":
    main()
