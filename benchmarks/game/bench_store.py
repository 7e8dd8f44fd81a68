"""What a store of measured masks takes of the time of a run.

    python benchmarks/game/bench_store.py --calibration novels.txt [--masks 200]

The same masks of the published strata are measured without a store and with one. The share is the time inside the
store's commits over the whole run with it; the two whole runs differ by the machine's noise as well. Ends in one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.spans import STORE, Spans


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--masks", type=int, default=200)
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    seconds, inside = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for way in ("without", "with"):
            store = Path(folder) / "worths.store" if way == "with" else None
            game = ModelGame.from_pretrained(model, arguments.calibration, store=store)
            masks = stratified_masks(game.n_players, arguments.masks, seed=0)
            game.evaluate(masks[:2])  # what is made at the first use is made now
            with Spans() as spans:
                game.evaluate(masks)
                game.close()
            seconds[way], inside = round(spans.wall, 2), spans.seconds[STORE]
    result = {
        "benchmark": "game/store",
        "machine": machine(),
        "masks": arguments.masks,
        "seconds": seconds,
        "seconds_in_commits": round(inside, 4),
        "share": round(inside / seconds["with"], 6),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
