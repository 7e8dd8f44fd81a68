"""How far the best masks of pairwise games are proven, and how long that takes.

    python benchmarks/search/bench_best_masks.py [--players 32,80] [--seconds 10]

Weights are normal: 1 a player and `strength` a pair. Removed are an eighth, a quarter and half of the players. The last
line is JSON: for each case whether the best mask was proven, the gap left as a share of the worth, and the seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast.game.pairwise import PairwiseGame
from layercoop_fast.search.best_masks import best_masks


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--players", default="32,80")
    parser.add_argument("--strengths", default="0.02,0.05,0.2,1")
    parser.add_argument("--seconds", type=float, default=10.0, help="limit of each case")
    arguments = parser.parse_args()
    rows = []
    for n in (int(part) for part in arguments.players.split(",")):
        for strength in (float(part) for part in arguments.strengths.split(",")):
            rng = np.random.default_rng(n)
            game = PairwiseGame(0.0, rng.normal(size=n), strength * np.triu(rng.normal(size=(n, n)), 1))
            for n_remove in (n // 8, n // 4, n // 2):
                start = time.perf_counter()
                found = best_masks(game, n_remove, time_limit=arguments.seconds)
                seconds = time.perf_counter() - start
                share = found.gap / abs(float(found.worths[0]))
                print(f"n {n} strength {strength} removed {n_remove}: gap {share:.1%}, {seconds:.1f} s")
                case = {"players": n, "strength": strength, "removed": n_remove, "proven": found.proven}
                rows.append(case | {"gap_share": share, "nodes": found.n_nodes, "seconds": seconds})
    print(json.dumps({"benchmark": "best_masks", "machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
