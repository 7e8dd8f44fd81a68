"""How many four-way items pruned models answer right, and whether methods differ: true continuations of a text.

    python benchmarks/search/bench_items.py --calibration novels.txt --items other.txt [--remove 6] [--repair]

Each item is a stretch of the text that is cut at three quarters; the options are what follows there and what follows in
three other items, ranked by their log-probability. Masks are those of the methods on the calibration text (coop first;
of equal masks one is measured), or of a JSON file of method -> removed layers. Differences from coop are tested by
McNemar's exact test on the items that one of two gets right and the other not. Ends in one JSON line.
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
from small_model import small_model

from layercoop_fast import ModelGame, fit_repair
from layercoop_fast.game.item_utility import item_values
from layercoop_fast.game.opening import load_text
from layercoop_fast.game.options import GameOptions
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.progress import Bars
from layercoop_fast.repair.fit import repaired_windows
from layercoop_fast.repair.texts import DEFAULT_TOKENS
from layercoop_fast.search.base import get_method

UTILITY = "accuracy"


def mcnemar(first: Floats, second: Floats) -> tuple[int, int, float]:
    """Items (0 or 1 each, float64 [N]) that only the first or only the second gets right, and the two-sided p-value.

    Exact: were both as good, each such item would go either way with probability 1/2. Source: McNemar (1947).
    """
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    n, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return only_first, only_second, min(1.0, 2 * tail)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--items", default="builtin-heldout", help="SPEC of the text that items are cut from")
    parser.add_argument("--n-items", type=int, default=1000)
    parser.add_argument("--item-tokens", type=int, default=64, help="tokens of a context and one continuation")
    parser.add_argument("--methods", default="coop,sleb,ppl,shortgpt,angular,taylor")
    parser.add_argument("--masks", type=Path, help="JSON of method -> removed layers, instead of searching")
    parser.add_argument("--remove", type=int, default=6)
    parser.add_argument("--repair", action="store_true", help="measure coop's mask repaired as well")
    parser.add_argument("--repair-tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--store", type=Path, help="keep measured items in this file")
    parser.add_argument("--memory", type=int, default=2**30, help="bytes for stored states")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    with Bars() as bars:
        name = arguments.model or str(small_model())
        game = ModelGame.from_pretrained(
            name, arguments.calibration, dtype=arguments.dtype, memory=arguments.memory, on_progress=bars.update
        )
        items = load_text(
            arguments.items,
            game.checkpoint.tokenizer,
            game.masked.skeleton,
            GameOptions(utility=UTILITY, windows=arguments.n_items, tokens=arguments.item_tokens, seed=arguments.seed),
        )
        asked = ModelGame(
            game.checkpoint,
            items,
            skeleton=game.masked.skeleton,
            utility=UTILITY,
            memory=arguments.memory,
            store=arguments.store,
            on_progress=bars.update,
        )

        def right(window_nll: Floats) -> Floats:
            """Which items are answered right, 0 or 1, from the NLL of every option token, float64 [N]."""
            values = item_values(UTILITY, window_nll[None], asked.fingerprints["calibration"])
            assert values is not None
            return values[0]

        rows: list[dict[str, Any]] = []
        answers: list[Floats] = []

        def add(label: str, removed: list[int], values: Floats, began: float) -> None:
            first, second, p = mcnemar(answers[1], values) if len(answers) > 1 else (0, 0, 1.0)
            answers.append(values)
            share = float(values.mean())
            rows.append(
                {
                    "method": label,
                    "removed": removed,
                    "accuracy": round(share, 4),
                    "stderr": round(math.sqrt(share * (1 - share) / len(values)), 4),
                    "only_coop_right": first,
                    "only_this_right": second,
                    "p_against_coop": p,
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            row = rows[-1]
            sys.stdout.write(
                f"{label:<16}{share:8.3f} ± {row['stderr']:.3f}   {first:>4} {second:>4}   p {p:.3g}   {removed}\n"
            )
            sys.stdout.flush()

        everything = np.ones(game.n_players, dtype=np.bool_)
        began = time.perf_counter()
        add("full", [], right(asked.evaluate(everything[None]).window_nll[0]), began)
        measured: dict[bytes, Floats] = {}
        for method, mask in masks_of(game, arguments).items():
            began = time.perf_counter()
            if mask.tobytes() not in measured:
                measured[mask.tobytes()] = right(asked.evaluate(mask[None]).window_nll[0])
            removed = np.flatnonzero(~mask).tolist()
            add(method, removed, measured[mask.tobytes()], began)
            if arguments.repair and method == "coop":
                repaired = fit_repair(game, mask, tokens=arguments.repair_tokens, progress=bars.update)
                add("coop + repair", removed, right(repaired_windows(asked, repaired)[2]), began)
    result = {
        "benchmark": "search/items",
        "machine": machine(),
        "model": name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "calibration": Path(arguments.calibration).name,
        "items": [Path(arguments.items).name, len(answers[0]), arguments.item_tokens],
        "utility": UTILITY,
        "repair_tokens": arguments.repair_tokens if arguments.repair else None,
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def masks_of(game: ModelGame, arguments: argparse.Namespace) -> dict[str, Masks]:
    """The mask of each method, coop's first."""
    if arguments.masks is not None:
        found = json.loads(arguments.masks.read_text(encoding="utf-8"))
    else:
        methods = ["coop", *(method for method in arguments.methods.split(",") if method != "coop")]
        choices = {method: get_method(method)(game, arguments.remove, seed=arguments.seed) for method in methods}
        found = {method: np.flatnonzero(~choice.mask).tolist() for method, choice in choices.items()}
    return {method: ~np.isin(np.arange(game.n_players), removed) for method, removed in found.items()}


if __name__ == "__main__":
    main()
