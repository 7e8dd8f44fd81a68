"""What a closed-form repair gains: perplexity of pruned models before and after it, on text it was not fitted to.

    python benchmarks/repair/bench_repair.py --calibration novels.txt --eval jargon.txt [--remove 3,6,10]

The first four fifths of the calibration text are searched and fitted on; its last fifth is the unseen text of a seen
domain, `builtin-heldout` that of another, and each --eval SPEC is a text of which nothing was seen. Masks are those of
sleb; with --masks FILE they are taken from there, or kept there. Ends in one JSON line.
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
from layercoop_fast.engine.windows import Windows
from layercoop_fast.game.calibration import load_calibration, read_text
from layercoop_fast.progress import Bars
from layercoop_fast.repair.streams import HeldOut
from layercoop_fast.repair.texts import DEFAULT_TOKENS, default_texts
from layercoop_fast.search.base import get_method


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--eval", action="append", default=[], help="SPEC of a text of an unseen kind; repeatable")
    parser.add_argument("--eval-windows", type=int, default=40)
    parser.add_argument("--repair-text", action="append", help="SPEC to fit to; default as for `prune`")
    parser.add_argument("--repair-tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--remove", default="3,6,10")
    parser.add_argument("--masks", type=Path, help="JSON of size -> removed layers")
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
        game = ModelGame.from_pretrained(name, str(seen), dtype=arguments.dtype, on_progress=bars.update)
        texts = {f"{seen.stem}, unseen part": str(unseen), "builtin-heldout": "builtin-heldout"}
        texts |= {Path(spec).name: spec for spec in arguments.eval}
        heldout = {label: held_out(game, spec, arguments.eval_windows) for label, spec in texts.items()}
        specs = arguments.repair_text or default_texts(game)
        masks = masks_of(game, sizes, arguments.masks)
        rows = []
        for size in sizes:
            mask = masks[size]
            kept = [int(layer) for layer in np.flatnonzero(mask)]
            before = {label: math.exp(text.nll(kept)) for label, text in heldout.items()}
            started, processor = time.perf_counter(), time.process_time()
            repaired = fit_repair(game, mask, specs, tokens=arguments.repair_tokens, progress=bars.update)
            seconds, processor = time.perf_counter() - started, time.process_time() - processor
            with repaired.applied():
                after = {label: math.exp(text.nll(kept)) for label, text in heldout.items()}
            rows.append(
                {
                    "remove": size,
                    "removed": [int(layer) for layer in np.flatnonzero(~mask)],
                    "strengths": [gap["strength"] for gap in repaired.record["gaps"]],
                    "tokens": repaired.record["tokens"],
                    "seconds": round(seconds, 1),
                    "cpu_seconds": round(processor, 1),
                    "ppl": {label: [round(before[label], 2), round(after[label], 2)] for label in before},
                }
            )
    show(rows)
    result = {
        "benchmark": "repair/repair",
        "machine": machine(),
        "model": name.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "fitted_to": [Path(spec).name for spec in specs],
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def held_out(game: ModelGame, spec: str, windows: int) -> HeldOut:
    """A text that is only measured on, in windows of the game's length."""
    tokens = int(game.calibration.ids.shape[1])
    text = load_calibration(spec, game.checkpoint.tokenizer, game.skeleton, windows=windows, tokens=tokens)
    return HeldOut(game, Windows(game.skeleton, text.ids))


def masks_of(game: ModelGame, sizes: list[int], file: Path | None) -> dict[int, Any]:
    """The mask of each size, by greedy removal or from a file of them."""
    if file is not None and file.exists():
        removed = {int(size): layers for size, layers in json.loads(file.read_text(encoding="utf-8")).items()}
    else:
        order = get_method("sleb")(game, max(sizes)).details["greedy_order"]
        removed = {size: sorted(order[:size]) for size in sizes}
        if file is not None:
            file.write_text(json.dumps(removed), encoding="utf-8")
    return {size: ~np.isin(np.arange(game.n_players), removed[size]) for size in sizes}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table()
    for column in ("removed", "text", "ppl", "repaired", "change", "s"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for row in rows:
        for label, (before, after) in row["ppl"].items():
            change = f"{100 * (after / before - 1):+.0f} %"
            table.add_row(str(row["remove"]), label, f"{before:.1f}", f"{after:.1f}", change, f"{row['seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
