"""What the search `coop` itself takes, apart from measuring masks: many players, a game that costs next to nothing.

    python benchmarks/search/bench_overhead.py [--players 160] [--remove 30]

The game is a pairwise one with known weights. Time inside the game is taken off. One thread. Ends in one JSON line:
seconds of the search, the masks it measured, and what one of them cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

from layercoop_fast import _C
from layercoop_fast.search import coop


class PairwiseGame:
    """Worth = −exp of a sum over removed players and pairs of them; counts its own seconds and masks."""

    def __init__(self, n_players: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.n_players = n_players
        self.single = random.exponential(0.05, n_players)
        pairs = random.normal(0, 0.004, (n_players, n_players))
        self.pairs = np.triu(pairs, 1)
        self.seconds = 0.0
        self.masks = 0

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        """Worths, float64 [M], of masks bool [M, n]."""
        began = time.perf_counter()
        removed = (~masks).astype(np.float64)
        worths = -(removed @ self.single + np.einsum("mi,ij,mj->m", removed, self.pairs, removed))
        self.masks += len(masks)
        self.seconds += time.perf_counter() - began
        return worths


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--players", type=int, default=160)
    parser.add_argument("--remove", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _C.set_num_threads(1)
    game = PairwiseGame(arguments.players, arguments.seed)
    began = time.perf_counter()
    choice = coop.search(game, arguments.remove, seed=arguments.seed)
    seconds = time.perf_counter() - began - game.seconds
    result = {
        "benchmark": "search/overhead",
        "machine": machine(),
        "players": arguments.players,
        "removed": int((~choice.mask).sum()),
        "masks": game.masks,
        "seconds": round(seconds, 2),
        "milliseconds_a_mask": round(1e3 * seconds / game.masks, 2),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
