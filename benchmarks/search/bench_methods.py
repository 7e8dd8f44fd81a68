"""What each search method removes, and what is left: perplexity on the calibration text and on another one.

    python benchmarks/search/bench_methods.py --calibration novels.txt --eval jargon.txt [--remove 3,6,10]

One run of `official` serves every size (its contributions do not depend on it). Prints a table and ends in one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame
from layercoop_fast.game.calibration import load_calibration
from layercoop_fast.progress import Bars
from layercoop_fast.search.base import METHODS, Choice, get_method
from layercoop_fast.search.official import contributions


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--eval", default="builtin-heldout")
    parser.add_argument("--eval-windows", type=int, default=40)
    parser.add_argument("--remove", default="3,6,10")
    parser.add_argument("--budget", type=int, default=500, help="masks that `official` measures")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.remove.split(",")]

    rows: list[dict[str, Any]] = []
    with Bars() as bars:
        name = arguments.model or str(small_model())
        game = ModelGame.from_pretrained(name, arguments.calibration, dtype=arguments.dtype, on_progress=bars.update)
        text = load_calibration(
            arguments.eval, game.checkpoint.tokenizer, game.skeleton, windows=arguments.eval_windows
        )
        unseen = ModelGame(game.checkpoint, text, skeleton=game.skeleton, on_progress=bars.update)
        full = np.ones((1, game.n_players), bool)
        rows.append({"method": "full", "remove": 0, "removed": [], **perplexities(game, unseen, full[0])})
        for method in METHODS:
            for choice, seconds, masks, evaluations in choices(game, method, sizes, arguments):
                row = {
                    "method": method,
                    "remove": int((~choice.mask).sum()),
                    "removed": [int(layer) for layer in np.flatnonzero(~choice.mask)],
                    "masks": masks,
                    "layer_evals": evaluations,
                    "seconds": round(seconds, 2),
                }
                rows.append({**row, **perplexities(game, unseen, choice.mask)})
    show(rows)
    result = {
        "benchmark": "search/methods",
        "machine": machine(),
        "model": name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "calibration": [Path(arguments.calibration).name, game.windows.n_windows, int(game.calibration.ids.shape[1])],
        "eval": [Path(arguments.eval).name, unseen.windows.n_windows, int(text.ids.shape[1])],
        "official_budget": arguments.budget,
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def choices(
    game: ModelGame, method: str, sizes: list[int], arguments: argparse.Namespace
) -> list[tuple[Choice, float, int, int]]:
    """Each size's choice with its seconds, masks and layer evaluations; every method starts with nothing known."""
    found = []
    shared = None
    for size in sizes:
        fresh = ModelGame(game.checkpoint, game.calibration, skeleton=game.skeleton, on_progress=game.on_progress)
        started = time.perf_counter()
        if method == "official":
            if shared is None:
                shared = contributions(fresh, seed=arguments.seed, budget=arguments.budget)
                cost = time.perf_counter() - started, fresh.evaluations.masks, fresh.evaluations.layer_evals
            found.append((shared.choice(size), *cost))
            continue
        choice = get_method(method)(fresh, size, seed=arguments.seed)
        seconds = time.perf_counter() - started
        found.append((choice, seconds, fresh.evaluations.masks, fresh.evaluations.layer_evals))
    return found


def perplexities(game: ModelGame, unseen: ModelGame, mask: np.ndarray[Any, Any]) -> dict[str, float]:
    """Perplexity of a mask on both texts."""
    return {
        "ppl": round(float(np.exp(game.evaluate(mask[None]).nll[0])), 2),
        "ppl_eval": round(float(np.exp(unseen.evaluate(mask[None]).nll[0])), 2),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table()
    for column in ("method", "removed", "ppl", "ppl eval", "masks", "s"):
        table.add_column(column, justify="left" if column in ("method", "removed") else "right")
    for row in rows:
        removed = " ".join(map(str, row["removed"]))
        figures = [
            f"{row['ppl']:.1f}",
            f"{row['ppl_eval']:.1f}",
            str(row.get("masks", "")),
            str(row.get("seconds", "")),
        ]
        table.add_row(row["method"], removed, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
