"""What each search method removes, what is left, and what it cost: perplexity on the calibration text and on another.

    python benchmarks/search/bench_methods.py --calibration novels.txt --eval jargon.txt [--remove 3,6,10]
    python benchmarks/search/bench_methods.py ... --players sublayers --remove 6,12,20 --methods sleb,finercut,evopress

Cost is counted in layers × tokens (`Evaluations.token_evals`), in units of one pass of the full model over the
calibration text, passes of rules that mask nothing included. One run of `official` serves every size (its contributions
do not depend on it); `sleb`, `finercut` and `ppl` go on from size to size, where a larger one asks all that a smaller
one asks, so their costs too are those of a run that starts with nothing. A size with more masks than `--truth` has no
row of `exhaustive`. `flap` prunes width: heads and channels with as many parameters as the same number of mean layers.

Prints a table, row by row, and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame
from layercoop_fast.comparing.flap import flap
from layercoop_fast.progress import Bars
from layercoop_fast.search.base import METHODS, get_method
from layercoop_fast.search.official import contributions
from layercoop_fast.texts.calibration import load_calibration

WIDTH = "flap"
_GOING_ON = ("ppl", "sleb", "finercut")


@dataclass
class Bench:
    """The two games and what was asked for."""

    game: ModelGame
    unseen: ModelGame
    sizes: list[int]
    arguments: argparse.Namespace

    def fresh(self) -> ModelGame:
        """The game with nothing known."""
        game = self.game
        return ModelGame(
            game.checkpoint,
            game.calibration,
            skeleton=game.masked.skeleton,
            players=game.masked.players,
            on_progress=game.on_progress,
        )

    def rows(self, method: str) -> Iterator[dict[str, Any]]:
        """One row for each size that the method can do."""
        arguments, game, started = self.arguments, self.fresh(), time.perf_counter()
        budgets = {"official": arguments.budget, "evopress": arguments.evopress, "exhaustive": arguments.truth}
        shared = contributions(game, seed=arguments.seed, budget=arguments.budget) if method == "official" else None
        learnt = time.perf_counter() - started
        for size in self.sizes:
            if method == "exhaustive" and comb(game.n_players, size) > arguments.truth:
                continue
            if method not in (*_GOING_ON, "official"):
                game, learnt = self.fresh(), 0.0
            started = time.perf_counter()
            if method == WIDTH:
                share = size / game.n_players
                of_blocks = sum(one.numel() for block in game.masked.skeleton.blocks for one in block.parameters())
                rival = flap(game, round(share * of_blocks))
                left = {"removed_params": rival.removed_params}
                learnt += time.perf_counter() - started
                nll, nll_unseen = (rival.window_nll(one.windows.ids).mean() for one in (self.game, self.unseen))
                n_masks = 0
            else:
                if shared is not None:
                    choice = shared.choice(size)
                else:
                    choice = get_method(method)(game, size, seed=arguments.seed, budget=budgets.get(method))
                learnt += time.perf_counter() - started
                left = {"removed": [game.masked.players.label(int(unit)) for unit in np.flatnonzero(~choice.mask)]}
                nll, nll_unseen = (one.evaluate(choice.mask[None]).nll[0] for one in (self.game, self.unseen))
                n_masks = choice.n_masks
            passes = game.evaluations.token_evals / (game.masked.skeleton.n_layers * game.masked.windows.ids.numel())
            yield {
                "method": method,
                "remove": size,
                **left,
                "ppl": round(float(np.exp(nll)), 2),
                "ppl_eval": round(float(np.exp(nll_unseen)), 2),
                "masks": n_masks,
                "token_evals": game.evaluations.token_evals,
                "passes": round(passes, 1),
                "seconds": round(learnt, 2),
            }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--methods", default=",".join([*METHODS, WIDTH]))
    parser.add_argument("--players", default="layers")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--eval", default="builtin-heldout")
    parser.add_argument("--eval-windows", type=int, default=40)
    parser.add_argument("--remove", default="3,6,10")
    parser.add_argument("--budget", type=int, default=500, help="masks that `official` measures")
    parser.add_argument("--evopress", type=int, default=500, help="masks that `evopress` looks at")
    parser.add_argument("--truth", type=int, default=5000, help="most masks of a size that `exhaustive` measures")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rows: list[dict[str, Any]] = []
    with Bars() as bars:
        name = arguments.model or str(small_model())
        game = ModelGame.from_pretrained(
            name, arguments.calibration, dtype=arguments.dtype, players=arguments.players, on_progress=bars.update
        )
        text = load_calibration(
            arguments.eval, game.checkpoint.tokenizer, game.masked.skeleton, windows=arguments.eval_windows
        )
        unseen = ModelGame(
            game.checkpoint, text, skeleton=game.masked.skeleton, players=game.masked.players, on_progress=bars.update
        )
        full = np.ones((1, game.n_players), bool)
        ppl, ppl_eval = (round(float(np.exp(one.evaluate(full).nll[0])), 2) for one in (game, unseen))
        rows.append({"method": "full", "remove": 0, "removed": [], "ppl": ppl, "ppl_eval": ppl_eval})
        show(rows[0])
        bench = Bench(game, unseen, sorted(int(size) for size in arguments.remove.split(",")), arguments)
        for method in arguments.methods.split(","):
            for row in bench.rows(method):
                rows.append(row)
                show(row)
    result = {
        "benchmark": "search/methods",
        "machine": machine(),
        "model": name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "players": arguments.players,
        "calibration": [
            Path(arguments.calibration).name,
            game.masked.windows.n_windows,
            int(game.calibration.ids.shape[1]),
        ],
        "eval": [Path(arguments.eval).name, unseen.windows.n_windows, int(text.ids.shape[1])],
        "budgets": {"official": arguments.budget, "evopress": arguments.evopress, "exhaustive": arguments.truth},
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def show(row: dict[str, Any]) -> None:
    """Print one row of the table, as soon as it is there."""
    gone = row.get("removed", f"{row.get('removed_params', 0):,} parameters")
    removed = gone if isinstance(gone, str) else " ".join(map(str, gone))
    cost = f"{row.get('masks', ''):>6} {row.get('passes', ''):>8} {row.get('seconds', ''):>8}"
    sys.stdout.write(f"{row['method']:<11}{row['ppl']:>12,.1f}{row['ppl_eval']:>14,.1f} {cost}  {removed}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
