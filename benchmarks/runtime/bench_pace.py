"""What trying drafts costs where the speed changes: `DraftLength` on clocks that are made up. No model, no timing.

    python benchmarks/runtime/bench_pace.py [--tokens 256]

Drafts that do not pay (acceptance, seconds of a draft in plain steps), first guesses of their share of a step, and
seeds: the seconds over those of plain steps alone, worst and mean, for each way that the machine's speed changes. Then
drafts that pay: tokens a second over plain steps. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import numpy as np

from layercoop_fast.runtime.draft_length import DraftLength

# What a row more of a verification takes, in plain steps.
ROW = 0.05
NOT_PAYING = [(0.0, 0.6), (0.3, 0.6), (0.5, 0.9), (0.2, 1.5), (0.9, 0.97), (0.6, 0.8)]
PAYING = [(0.95, 0.3), (0.9, 0.5), (0.8, 0.35)]
GUESSES, SEEDS = [0.3, 0.6, 0.9], 6

Slowness = Callable[[float], float]
CLOCKS: dict[str, Slowness] = {
    "the same throughout": lambda time: 1.0,
    "half for 8 steps, then whole": lambda time: 2.0 if time < 8 else 1.0,
    "whole for 5, then half": lambda time: 1.0 if time < 5 else 2.0,
    "in turns of 60": lambda time: 1.0 + (int(time / 60) % 2),
    "in turns of 20": lambda time: 1.0 + (int(time / 20) % 2),
    "in turns of 7": lambda time: 1.0 + (int(time / 7) % 2),
}


def seconds_of(
    lengths: DraftLength, tokens: int, acceptance: float, draft: float, slowness: Slowness, seed: int
) -> float:
    """The made-up seconds that so many tokens take."""
    random = np.random.default_rng(seed)
    clock, written = 0.0, 0
    while written < tokens:
        drafted = lengths.length(tokens - written)
        if not drafted:
            took = slowness(clock)
            clock += took
            lengths.record_step(took)
            written += 1
            continue
        accepted = 0
        while accepted < drafted and random.random() < acceptance:
            accepted += 1
        drafting = 0.0
        for _ in range(drafted):
            took = draft * slowness(clock)
            clock += took
            drafting += took
        verifying = (1 + ROW * drafted) * slowness(clock)
        clock += verifying
        lengths.record_round(drafted, [accepted], drafting, verifying)
        written += accepted + 1
    return clock


def over_plain(tokens: int, acceptance: float, draft: float, share: float, slowness: Slowness, seed: int) -> float:
    """Seconds with drafts over seconds without."""
    plain = seconds_of(DraftLength(share, most=0), tokens, acceptance, draft, slowness, seed)
    return seconds_of(DraftLength(share), tokens, acceptance, draft, slowness, seed) / plain


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    rows = {}
    for name, slowness in CLOCKS.items():
        costs = [
            over_plain(arguments.tokens, acceptance, draft, share, slowness, seed) - 1
            for acceptance, draft in NOT_PAYING
            for share in GUESSES
            for seed in range(SEEDS)
        ]
        gains = [
            1 / np.mean([over_plain(1500, acceptance, draft, 0.5, slowness, seed) for seed in range(SEEDS)])
            for acceptance, draft in PAYING
        ]
        paying = [round(float(gain), 2) for gain in gains]
        rows[name] = {
            "worst_cost": round(max(costs), 4),
            "mean_cost": round(float(np.mean(costs)), 4),
            "speed_up_of_paying": paying,
        }
        print(f"{name:<30} worst {max(costs):6.1%}  mean {np.mean(costs):6.1%}  paying {paying}")
    sys.stdout.write(json.dumps({"benchmark": "runtime/pace", "tokens": arguments.tokens, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
