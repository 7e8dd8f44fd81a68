"""What a closed-form repair gains: perplexity of pruned models before and after it, on text it was not fitted to.

    python benchmarks/repair/bench_repair.py --calibration novels.txt --eval jargon.txt [--remove 3,6,10]

The first four fifths of the calibration text are searched and fitted on; its last fifth is the unseen text of a seen
domain, `builtin-heldout` that of another, and each --eval SPEC is a text of which nothing was seen. Masks are those of
sleb, or of --method; with --masks FILE, JSON of name -> removed layers, they are taken from there, or kept there. With
--finalists N the N best masks of each size that the method measured, and with --trade also the best of those that keep
one layer of a run of --trade or more of the method's own mask: what one cheap block in a long run is worth. `worth` is
that on the text searched on, before and after. With --players sublayers a size is what as many mean layers have in
parameters, and coop solves the knapsack. --repair-compute small,full fits both forms of repair. With
--search-repaired masks are also searched among repaired ones, as `prune --search-repaired` does. With --items N also
the accuracy on N four-way items cut from each --eval text, normalised by length. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, fit_repair
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Masks
from layercoop_fast.progress import Bars
from layercoop_fast.pruning.player_costs import count_parameters
from layercoop_fast.pruning.under_repairs import TOKENS, WINDOWS
from layercoop_fast.repair.fit import repaired_worth
from layercoop_fast.repair.forecast import forecast_repair
from layercoop_fast.repair.gaps import find_gaps
from layercoop_fast.repair.held_out import HeldOut
from layercoop_fast.repair.repaired_model import repaired_game
from layercoop_fast.repair.run_maps import RunMaps, fit_run_maps, longest_run
from layercoop_fast.repair.texts import DEFAULT_TOKENS, RepairTexts, default_texts, texts_to_fit
from layercoop_fast.search.by_cost import search_by_cost
from layercoop_fast.search.finalists import best_measured
from layercoop_fast.search.target import Target
from layercoop_fast.texts.calibration import load_calibration, read_text
from layercoop_fast.texts.items import load_items

REPAIRED = ", searched repaired"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--eval", action="append", default=[], help="SPEC of a text of an unseen kind; repeatable")
    parser.add_argument("--eval-windows", type=int, default=40)
    parser.add_argument("--repair-text", action="append", help="SPEC to fit to; default as for `prune`")
    parser.add_argument("--repair-tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--repair-compute", default="full", help="small, full, or both with a comma between")
    parser.add_argument("--search-repaired", action="store_true")
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--remove", default="3,6,10")
    parser.add_argument("--method", default="sleb")
    parser.add_argument("--masks", type=Path, help="JSON of name -> removed layers")
    parser.add_argument("--finalists", type=int, default=1)
    parser.add_argument("--trade", type=int, help="length of a run that may keep a layer")
    parser.add_argument("--players", default="layers")
    parser.add_argument("--memory", type=int, help="bytes for stored states")
    parser.add_argument("--store", type=Path, help="keep measured masks in this file")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.remove.split(",")]

    with tempfile.TemporaryDirectory() as folder, Bars() as bars:
        text = read_text(str(arguments.calibration))
        border = text.index("\n", len(text) * 4 // 5)
        seen, unseen = Path(folder) / f"{arguments.calibration.stem}.txt", Path(folder) / "unseen.txt"
        seen.write_text(text[:border], encoding="utf-8")
        unseen.write_text(text[border:], encoding="utf-8")
        name = arguments.model or str(small_model())
        game = ModelGame.from_pretrained(
            name,
            str(seen),
            players=arguments.players,
            dtype=arguments.dtype,
            memory=arguments.memory,
            store=arguments.store,
            on_progress=bars.update,
        )
        texts = {f"{seen.stem}, unseen part": str(unseen), "builtin-heldout": "builtin-heldout"}
        texts |= {Path(spec).name: spec for spec in arguments.eval}
        heldout = {label: held_out(game, spec, arguments.eval_windows) for label, spec in texts.items()}
        asked = {Path(spec).name: items_of(game, spec, arguments.items) for spec in arguments.eval if arguments.items}
        specs = arguments.repair_text or default_texts(game)
        fitted = texts_to_fit(game, specs, arguments.repair_tokens, progress=bars.update)
        rows = []
        found = masks_of(game, sizes, arguments)
        maps = None
        if arguments.search_repaired:
            maps = fit_run_maps(game, fitted.fewer(TOKENS), longest_run(game.masked, max(sizes)))
            found |= masks_repaired(game, fitted, maps, sizes, arguments)
        for label, mask in found.items():
            kept = [int(unit) for unit in np.flatnonzero(game.masked.players.unit_masks(mask[None])[0])]
            before = {name: math.exp(text.nll(kept)) for name, text in heldout.items()}
            right = {name: float(items(mask[None])[0]) for name, items in asked.items()}
            for compute in arguments.repair_compute.split(","):
                ahead = forecast_repair(game, mask, fitted).get(compute, 0.0)
                started, processor = time.perf_counter(), time.process_time()
                judged = maps if label.endswith(REPAIRED) else None
                repaired = fit_repair(game, mask, fitted, compute=compute, maps=judged, progress=bars.update)
                seconds, processor = time.perf_counter() - started, time.process_time() - processor
                with repaired.applied():
                    after = {name: math.exp(text.nll(kept)) for name, text in heldout.items()}
                worth = float(game(mask[None])[0]), repaired_worth(game, repaired)[0]
                rows.append(
                    {
                        "remove": label,
                        "removed": [game.masked.players.label(int(player)) for player in np.flatnonzero(~mask)],
                        "compute": compute,
                        "strengths": [gap["strength"] for gap in repaired.record["gaps"]],
                        "linear_neurons": [gap.get("linear_neurons", 0) for gap in repaired.record["gaps"]],
                        "tokens": repaired.record["tokens"],
                        "seconds": round(seconds, 1),
                        "forecast_seconds": round(ahead, 1),
                        "cpu_seconds": round(processor, 1),
                        "worth": [round(one, 5) for one in worth],
                        "items": {
                            name: [round(right[name], 4), round(repaired_worth(items, repaired)[0], 4)]
                            for name, items in asked.items()
                        },
                        "ppl": {name: [round(before[name], 2), round(after[name], 2)] for name in before},
                        "mean_nll": [round(float(np.mean(np.log(list(ppl.values())))), 4) for ppl in (before, after)],
                    }
                )
                show(rows[-1:])
    result = {
        "benchmark": "repair/repair",
        "machine": machine(),
        "model": name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "players": arguments.players,
        "fitted_to": [Path(spec).name for spec in specs],
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def held_out(game: ModelGame, spec: str, windows: int) -> HeldOut:
    """A text that is only measured on, in windows of the game's length."""
    tokens = int(game.calibration.ids.shape[1])
    text = load_calibration(spec, game.checkpoint.tokenizer, game.masked.skeleton, windows=windows, tokens=tokens)
    return HeldOut(game, Windows(game.masked.skeleton, text.ids))


def items_of(game: ModelGame, spec: str, count: int) -> ModelGame:
    """The same model on items cut from a text."""
    skeleton = game.masked.skeleton
    items = load_items(spec, game.checkpoint.tokenizer, skeleton, items=count, tokens=60)
    return ModelGame(game.checkpoint, items, skeleton=skeleton, utility="accuracy_norm", block_path="hf")


def masks_of(game: ModelGame, sizes: list[int], arguments: argparse.Namespace) -> dict[str, Masks]:
    """The masks to repair by name: from a file of them, or what a method finds, with its finalists."""
    file: Path | None = arguments.masks
    if file is not None and file.exists():
        removed = json.loads(file.read_text(encoding="utf-8"))
        return {name: ~np.isin(np.arange(game.n_players), layers) for name, layers in removed.items()}
    found: dict[str, Masks] = {}
    params = count_parameters(game)
    for size in sizes:
        if params.equal:
            target = Target.of_count(game.n_players, size)
        else:
            target = Target(params.players, size * float(params.players.sum()) / game.masked.skeleton.n_layers)
        spent = game.evaluations.token_evals
        mask = search_by_cost(arguments.method, game, target).mask
        spent = game.evaluations.token_evals - spent
        sys.stderr.write(f"{size}: {spent / 1e6:.1f} million layers times tokens among masks\n")
        best = best_measured(game, mask, target.wants, arguments.finalists)
        found |= {str(size) if place == 0 else f"{size}, no. {place + 1}": one for place, one in enumerate(best)}
        if arguments.trade is not None:
            runs = [gap.removed for gap in find_gaps(mask) if len(gap.removed) >= arguments.trade]
            inner = {layer for run in runs for layer in run[1:-1]}

            def trades(other: Masks, inner: set[int] = inner, target: Target = target) -> bool:
                return target.wants(other) and any(other[layer] for layer in inner)

            traded = best_measured(game, mask, trades, 2)[1:]
            found |= {f"{size}, one of the run kept": one for one in traded}
    if file is not None:
        written = {name: np.flatnonzero(~mask).tolist() for name, mask in found.items()}
        file.write_text(json.dumps(written), encoding="utf-8")
    return found


def masks_repaired(
    game: ModelGame, fitted: RepairTexts, maps: RunMaps, sizes: list[int], arguments: argparse.Namespace
) -> dict[str, Masks]:
    """The masks of each size that are found among repaired ones."""
    found = {}
    for size in sizes:
        played = repaired_game(game, maps, fitted.heldout(WINDOWS))
        mask = search_by_cost(arguments.method, played, Target.of_count(game.n_players, size)).mask
        found[f"{size}{REPAIRED}"] = mask
        spent = (played.evaluations.token_evals + maps.tokens) / 1e6
        sys.stderr.write(f"{size}: {spent:.1f} million layers times tokens among repaired masks, maps included\n")
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows of the table, as soon as they are there."""
    table = Table()
    for column in ("removed", "text", "ppl", "repaired", "change", "s"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for row in rows:
        for label, (before, after) in row["ppl"].items():
            change = f"{100 * (after / before - 1):+.0f} %"
            table.add_row(
                f"{row['remove']} {row['compute']}",
                label,
                f"{before:.1f}",
                f"{after:.1f}",
                change,
                f"{row['seconds']:.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
