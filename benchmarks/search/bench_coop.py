"""What coop spends and finds, by seed, next to other methods and evolution at the same cost, answered from one store.

    python benchmarks/search/bench_coop.py --calibration novels.txt --store worths.store [--remove 3,6,10] [--seeds 10]

Every search plays as if nothing were known (`replay.py`), so passes are those of a run by itself; what no search before
has asked is measured and kept in the store. `reached` is what was spent until the answer was first known whole. With
--evopress so many seeds of evopress play on the model itself until they have spent as much as coop's first seed; they
answer with the best that they measured on all windows. With --nested each size is searched as a family too, and its row
says what the smaller sizes and the family took beyond the size alone. Losses are nats a token above the full model's;
the paired test is over windows, against coop's first seed. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from replay import Replay
from small_model import small_model

from layercoop_fast import ModelGame
from layercoop_fast.comparing.paired import paired_p
from layercoop_fast.game.staged import StagedGame
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.progress import Bars
from layercoop_fast.search import evopress, nested
from layercoop_fast.search.base import get_method

NESTED = "nested"


class Spent(Exception):
    """Raised where a search has spent what it may."""


class Watched(Replay):
    """A replay that knows when each mask was first known whole."""

    def __init__(self, game: Replay) -> None:
        super().__init__(game.source, game.utility.name, game._shared)
        self.whole_at: dict[bytes, float] = {}

    def note(self, masks: Masks, n_windows: int) -> None:
        """Masks (bool [M, n]) are known on the first windows."""
        if n_windows == self.windows.n_windows:
            for mask in masks:
                self.whole_at.setdefault(mask.tobytes(), self.passes)


class Spending:
    """A game on a model that ends a search once it has spent `most` passes, and keeps the best mask measured whole."""

    def __init__(self, game: ModelGame, most: float) -> None:
        self.game, self.most = game.view(apart=True, stored=False), most
        self.n_players, self.n_windows, self.calibration = game.n_players, game.n_windows, game.calibration
        self.windows = game.masked.windows
        self.best: Masks | None = None
        self.worth = -math.inf
        self.reached = 0.0
        self.seen: set[bytes] = set()
        self._staged: StagedGame | None = None

    @property
    def passes(self) -> float:
        """What was spent, in passes of the full model over all windows."""
        return self.game.evaluations.token_evals / (self.game.masked.skeleton.n_layers * self.windows.ids.numel())

    @property
    def ends(self) -> Sequence[int]:
        """Windows of each stage."""
        assert self._staged is not None
        return self._staged.ends

    def with_utility(self, utility: str) -> Spending:
        """This, with another worth."""
        self.game = self.game.with_utility(utility)
        return self

    def staged(self, ends: Sequence[int]) -> Spending:
        """This, on growing numbers of windows."""
        self._staged = self.game.staged(ends)
        return self

    def worths(self, masks: Masks, n_windows: int) -> Floats:
        """Worths on the first windows, float64 [M], of masks bool [M, n]. Raises `Spent`."""
        if self.passes >= self.most:
            raise Spent
        assert self._staged is not None
        self.seen |= {mask.tobytes() for mask in masks}
        worths = self._staged.worths(masks, n_windows)
        if n_windows == self.windows.n_windows and np.nanmax(worths, initial=-math.inf) > self.worth:
            row = int(np.nanargmax(worths))
            self.best, self.worth, self.reached = masks[row], float(worths[row]), self.passes
        return worths


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--remove", default="3,6,10")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", default="", help="search with these too, once each")
    parser.add_argument("--evopress", type=int, default=0, help="seeds of evopress that are given what coop spent")
    parser.add_argument("--nested", action="store_true", help="search families of sizes, each within the next, too")
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
        for size in map(int, arguments.remove.split(",")):
            first: Floats | None = None
            spent = 0.0
            for seed in range(arguments.seeds):
                row, windows = search(game, "coop", size, seed)
                if first is None:
                    first, spent = windows, row["passes"]
                add(rows, row, windows, first)
            for method in filter(None, arguments.methods.split(",")):
                add(rows, *search(game, method, size, 0), first)
            if arguments.nested:
                add(rows, *search(game, NESTED, size, 0), first)
            for seed in range(arguments.evopress):
                add(rows, *evolve(game, size, seed, most=spent), first)
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


def search(game: Replay, method: str, size: int, seed: int) -> tuple[dict[str, Any], Floats]:
    """One search: a row, and the loss of each window (float64 [W]) of what it chose."""
    began, played = time.perf_counter(), Watched(game)
    choice = (nested.search if method == NESTED else get_method(method))(played, size, seed=seed)
    windows = losses(game, choice.mask)
    reached = played.whole_at.get(choice.mask.tobytes(), played.passes)
    row = about(method, size, seed, choice.mask, windows)
    row |= {"passes": round(played.passes, 2), "reached": round(reached, 2), "masks": played.masks}
    row |= {"runner_up_better": choice.details.get("runner_up_better")}
    if method == NESTED:
        row |= {"nested": choice.details["nested"], "nested_cost": choice.details["nested_cost"]}
    return {**row, "seconds": round(time.perf_counter() - began, 1)}, windows


def evolve(game: Replay, size: int, seed: int, most: float) -> tuple[dict[str, Any], Floats]:
    """As `search`, evopress until it has spent `most` passes."""
    began, played = time.perf_counter(), Spending(game.source, most)
    with suppress(Spent):
        evopress.search(played, size, seed=seed, budget=100_000)
    if played.best is None:
        raise SystemExit("evopress cannot begin on so few passes")
    windows = losses(game, played.best)
    row = about("evopress", size, seed, played.best, windows)
    row |= {"passes": round(played.passes, 2), "reached": round(played.reached, 2)}
    row |= {"masks": len(played.seen)}
    return {**row, "seconds": round(time.perf_counter() - began, 1)}, windows


def about(method: str, size: int, seed: int, mask: Masks, windows: Floats) -> dict[str, Any]:
    """What was chosen, and the loss of that."""
    removed = np.flatnonzero(~mask).tolist()
    return {"method": method, "remove": size, "seed": seed, "removed": removed, "loss": float(windows.mean())}


def losses(game: Replay, mask: Masks) -> Floats:
    """Nats a token that each window is above the full model's, float64 [W]."""
    scores = game.source.window_scores(np.stack([np.ones_like(mask), mask]))
    return scores.nll[1] - scores.nll[0]


def add(rows: list[dict[str, Any]], row: dict[str, Any], windows: Floats, first: Floats | None) -> None:
    """Keep and print a row, with how it stands against coop's first seed where there is one."""
    if first is not None:
        row["p_against_first"] = paired_p(windows - first)
    rows.append(row)
    show(row)


def show(row: dict[str, Any]) -> None:
    """Print one row of the table, as soon as it is there."""
    about = f"{row['method']:<9}{row['remove']:>3} seed {row['seed']:<3}{row['loss']:10.5f}"
    p = f"  p {row['p_against_first']:.3g}" if row.get("p_against_first") is not None else ""
    cost = f"{row['passes']:8.1f} {row['reached']:8.1f} {row['masks']:>5}"
    sys.stdout.write(f"{about}{cost}  {' '.join(map(str, row['removed']))}{p}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
