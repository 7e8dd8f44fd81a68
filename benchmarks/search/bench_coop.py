"""What coop spends and finds, by seed, beside evolution at the same cost: many searches answered from one store.

    python benchmarks/search/bench_coop.py --calibration novels.txt --store worths.store [--remove 3,6,10] [--seeds 10]

Every search plays as if nothing were known (`replay.py`), so passes are those of a run by itself; what no search before
has asked is measured and kept in the store. `reached` is what was spent until the answer was first known whole. With
--evopress the same number of seeds of evopress are given masks until they have spent as much as coop's seed did. Losses
are nats a token above the full model's; the paired test is over windows, against seed 0. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from replay import Replay
from small_model import small_model

from layercoop_fast.comparison import paired_p
from layercoop_fast.game.protocol import Floats, Masks
from layercoop_fast.progress import Bars
from layercoop_fast.search import coop, evopress, sleb
from layercoop_fast.search.base import Choice


class Spent(Exception):
    """Raised where a search has spent what it may."""


class Watched(Replay):
    """A replay that knows when each mask was first known whole, and stops where `most` passes are spent."""

    def __init__(self, game: Replay, most: float = math.inf) -> None:
        super().__init__(game.source, game.utility.name)
        self.most = most
        self.whole_at: dict[bytes, float] = {}

    def note(self, masks: Masks, n_windows: int) -> None:
        """Masks (bool [M, n]) are known on the first windows."""
        if n_windows == self.windows.n_windows:
            for mask in masks:
                self.whole_at.setdefault(mask.tobytes(), self.passes)
        if self.passes > self.most:
            raise Spent


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--remove", default="3,6,10")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sleb", action="store_true", help="search with sleb too, and say coop's share of its passes")
    parser.add_argument("--evopress", action="store_true", help="give evopress what coop spent")
    parser.add_argument("--players", default="layers")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--memory", type=int, default=2**30, help="bytes for stored states")
    arguments = parser.parse_args()

    name = arguments.model or str(small_model())
    options = {name: getattr(arguments, name) for name in ("players", "windows", "tokens", "memory")}
    rows: list[dict[str, Any]] = []
    with Bars() as bars:
        game = Replay.open(name, arguments.calibration, store=arguments.store, on_progress=bars.update, **options)
        rival = None
        if arguments.evopress:
            rival = Replay.open(
                name,
                arguments.calibration,
                store=arguments.store.with_suffix(".kl.store"),
                kl=True,
                on_progress=bars.update,
                **options,
            )
        for size in map(int, arguments.remove.split(",")):
            first: Floats | None = None
            if arguments.sleb:
                row, _ = search(game, "sleb", size, 0)
                rows.append(row)
                show(row)
            for seed in range(arguments.seeds):
                row, windows = search(game, "coop", size, seed)
                first = windows if first is None else first
                row["p_against_first"] = paired_p(windows - first)
                rows.append(row)
                show(row)
                if rival is not None:
                    row, _ = search(rival, "evopress", size, seed, most=row["passes"], judge=game)
                    rows.append(row)
                    show(row)
    result = {
        "benchmark": "search/coop",
        "machine": machine(),
        "model": name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": "float32",
        "players": arguments.players,
        "calibration": [Path(arguments.calibration).name, arguments.windows, arguments.tokens],
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def search(
    game: Replay, method: str, size: int, seed: int, most: float = math.inf, judge: Replay | None = None
) -> tuple[dict[str, Any], Floats]:
    """One search: a row, and the loss of each window (float64 [W]) of what it chose."""
    began, played = time.perf_counter(), Watched(game, most)
    choice = (
        evolve(played, size, seed)
        if method == "evopress"
        else {"coop": coop, "sleb": sleb}[method].search(played, size, seed=seed)
    )
    scores = (judge or game).source.window_scores(np.stack([np.ones_like(choice.mask), choice.mask]))
    windows = scores.nll[1] - scores.nll[0]
    reached = played.whole_at.get(choice.mask.tobytes(), played.passes)
    row = {
        "method": method,
        "remove": size,
        "seed": seed,
        "removed": np.flatnonzero(~choice.mask).tolist(),
        "loss": float(windows.mean()),
        "passes": round(played.passes, 2),
        "reached": round(reached, 2),
        "masks": played.masks,
        "runner_up_better": choice.details.get("runner_up_better"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return row, windows


def evolve(game: Watched, size: int, seed: int) -> Choice:
    """evopress on more and more masks until the passes are spent: a smaller budget is a larger one's beginning."""
    best: Choice | None = None
    for budget in range(evopress.INITIAL + 1, 100_000, evopress.OFFSPRING):
        fresh = Watched(game, game.most)
        try:
            best = evopress.search(fresh, size, seed=seed, budget=budget)
        except Spent:
            break
        game.token_evals, game.asked, game.whole_at = fresh.token_evals, fresh.asked, fresh.whole_at
        if best.n_masks < budget:  # nothing new is left near its best
            break
    if best is None:
        raise SystemExit("evopress cannot begin on so few passes")
    return best


def show(row: dict[str, Any]) -> None:
    """Print one row of the table, as soon as it is there."""
    about = f"{row['method']:<9}{row['remove']:>3} seed {row['seed']:<3}{row['loss']:10.5f}"
    p = f"  p {row['p_against_first']:.3g}" if row.get("p_against_first") is not None else ""
    cost = f"{row['passes']:8.1f} {row['reached']:8.1f} {row['masks']:>5}"
    sys.stdout.write(f"{about}{cost}  {' '.join(map(str, row['removed']))}{p}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
