"""How long a plan takes to build, and whether the time grows linearly with the number of masks.

    python benchmarks/csrc/bench_plan.py

Masks are uniformly random, so they share little: the most nodes a mask, and the worst case. The last line is JSON: the
best of several runs in seconds for each number of masks (64 players, no budget), the ask for 100,000 masks, the same
100,000 under a budget of 16 states, and the nanoseconds a node, which stay level when growth is linear; and what a
budget of states adds to the layer evaluations of 8,000 masks of 32 layers in the published strata.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import numpy as np

from layercoop_fast import _C, stratified_masks

N_PLAYERS = 64
COUNTS = [1_000, 10_000, 100_000, 1_000_000]
ASKED_COUNT, ASKED_SECONDS = 100_000, 0.2
PUBLISHED_MASKS, PUBLISHED_LAYERS, STATES = 8_000, 32, [1, 2, 3, 4, 7, 16]


def processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'} x{os.cpu_count()}"


def best_seconds(function: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def budgets() -> dict[str, object]:
    """Layer evaluations under a budget of so many states, over those without one."""
    packed = _C.pack_masks(stratified_masks(PUBLISHED_LAYERS, PUBLISHED_MASKS, seed=0))
    scheduled = {states: _C.Plan(packed, PUBLISHED_LAYERS, states).scheduled for states in STATES}
    floor = _C.Plan(packed, PUBLISHED_LAYERS, PUBLISHED_MASKS).plan
    return {"floor": floor, "over_floor": {states: round(count / floor, 3) for states, count in scheduled.items()}}


def main() -> None:
    rng = np.random.default_rng(0)
    rows = {}
    for count in COUNTS:
        masks = rng.random((count, N_PLAYERS)) < 0.5
        packed = _C.pack_masks(masks)
        runs = 3 if count >= 1_000_000 else 7
        plan = _C.Plan(packed, N_PLAYERS, count)
        seconds = {
            "pack": best_seconds(lambda masks=masks: _C.pack_masks(masks), runs),
            "count": best_seconds(lambda packed=packed: _C.trie_counts(packed, N_PLAYERS), runs),
            "plan": best_seconds(lambda packed=packed, count=count: _C.Plan(packed, N_PLAYERS, count), runs),
            "plan_16_states": best_seconds(lambda packed=packed: _C.Plan(packed, N_PLAYERS, 16), runs),
        }
        rows[count] = {"nodes": plan.plan, "ns_per_node": seconds["plan"] / plan.plan * 1e9, "seconds": seconds}
        print(f"{count:>9,} masks, {plan.plan:>10,} nodes: " + ", ".join(f"{k} {v:.2e} s" for k, v in seconds.items()))
    budget = budgets()
    print(f"8,000 masks of 32 layers, evaluations over the floor by states: {budget}")
    result = {
        "benchmark": "plan",
        "budget": budget,
        "machine": processor(),
        "isa": _C.isa(),
        "threads": _C.num_threads(),
        "players": N_PLAYERS,
        "masks": rows,
        "asked": {
            "masks": ASKED_COUNT,
            "seconds": ASKED_SECONDS,
            "met": rows[ASKED_COUNT]["seconds"]["plan"] < ASKED_SECONDS,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
