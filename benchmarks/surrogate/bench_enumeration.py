"""How long all 2ⁿ masks of a surrogate's network take, and what interactions and best masks add.

    python benchmarks/surrogate/bench_enumeration.py [--players 24 28 30 32]

64 hidden units, CELU, sigmoid, random weights. Seconds are wall time with all threads; nanoseconds a mask a core are
the processor time of all threads by the number of masks, which holds on a busy machine too. The error is that of the
mean marginals at 20 players against all values in float64, as a share of f's range. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from layercoop_fast import _C
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.reference.networks import predict_reference
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.shapley.enumeration import enumerate_masks

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

N_HIDDEN = 64
ASKED_SECONDS = {30: 6, 32: 25}


def best_seconds(function: Callable[[], object], runs: int) -> tuple[float, float]:
    """The least wall time and the least processor time (of all threads)."""
    wall, cpu = [], []
    for _ in range(runs):
        starts = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - starts[0])
        cpu.append(time.process_time() - starts[1])
    return min(wall), min(cpu)


def network(n: int) -> Networks:
    rng = np.random.default_rng(n)
    shapes = [(1, N_HIDDEN, n), (1, N_HIDDEN), (1, N_HIDDEN), (1,)]
    return Networks(*(rng.normal(scale=0.3, size=shape).astype(np.float32) for shape in shapes))


def error_at_twenty_players() -> float:
    networks, masks = network(20), all_masks(20)
    f, rows, sizes = predict_reference(networks, masks).mean(axis=1), np.arange(1 << 20), masks.sum(axis=1)
    exact = np.empty((20, 20))
    for i in range(20):
        m = rows[~masks[:, i]]
        exact[i] = np.bincount(sizes[m], f[m | 1 << i] - f[m], 20) / np.bincount(sizes[m], minlength=20)
    return float(np.abs(enumerate_masks(networks).by_size - exact).max() / np.ptp(f))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--players", type=int, nargs="+", default=[24, 28, 30, 32])
    players = parser.parse_args().players
    cores = _C.num_threads()

    passes = {}
    for n in players:
        networks = network(n)
        seconds, cpu = best_seconds(
            lambda networks=networks: enumerate_masks(networks), 7 if n <= 24 else 2 if n <= 28 else 1
        )
        passes[n] = {"seconds": seconds, "ns_a_mask_a_core": cpu / 2**n * 1e9}
        print(f"2^{n}: {seconds:.3f} s, {passes[n]['ns_a_mask_a_core']:.2f} ns a mask a core")

    networks = network(24)
    ways = {
        "values": lambda: enumerate_masks(networks),
        "interactions": lambda: enumerate_masks(networks, interactions=True),
        "top 100": lambda: enumerate_masks(networks, top=100),
        "interactions and top 100": lambda: enumerate_masks(networks, interactions=True, top=100),
    }
    seconds_at_24 = dict.fromkeys(ways, float("inf"))
    for _ in range(7):  # in turn, so that all meet the same disturbances
        for name, way in ways.items():
            seconds_at_24[name] = min(seconds_at_24[name], best_seconds(way, 1)[1])
    for name, value in seconds_at_24.items():
        print(f"n = 24, {name:<25} {value:.3f} s  {value / seconds_at_24['values']:.2f}x")

    result = {
        "benchmark": "enumeration",
        "machine": machine(),
        "isa": _C.isa(),
        "threads": cores,
        "hidden": N_HIDDEN,
        "passes": passes,
        "growth_of_ns_a_mask": passes[players[-1]]["ns_a_mask_a_core"] / passes[players[0]]["ns_a_mask_a_core"],
        "processor_seconds_at_24": seconds_at_24,
        "everything_over_values": seconds_at_24["interactions and top 100"] / seconds_at_24["values"],
        "error_at_20_of_range": error_at_twenty_players(),
        "asked": {
            **{f"2^{n} s": [s, passes[n]["seconds"] <= s] for n, s in ASKED_SECONDS.items() if n in passes},
            "ns a mask a core": [10, max(row["ns_a_mask_a_core"] for row in passes.values()) <= 10],
            "everything over values": [1.6, seconds_at_24["interactions and top 100"] / seconds_at_24["values"] <= 1.6],
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
