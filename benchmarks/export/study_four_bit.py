"""Quantise then prune, or prune then quantise: perplexity, bytes and speed of both, and of each step alone.

    python benchmarks/export/study_four_bit.py --model FOLDER [--remove 2,4] [--scheme nf4]       # your own model
    python benchmarks/export/study_four_bit.py --calibration novels.txt --eval jargon.txt

Without `--model` it is the small one that `benchmarks/train_small.py` trained in full precision, and with `--smollm2`
the small real model, whose weights were in 4 bits once before we see them: what quantising costs it is too little, so
its rows are biased. Only before quantising can a repair be fitted (it is new weights): `--repair` adds rows with one.
Perplexities are measured by one game on each finished checkpoint. Prints a table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model
from train_small import folder_of

from layercoop_fast import ModelGame, prune
from layercoop_fast.export.quantising import quantise_checkpoint
from layercoop_fast.pruning.checkpoint_costs import measure_costs


def checkpoints(folder: Path, place: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Every checkpoint of the table, by its name there."""
    made = {"full": folder, arguments.scheme: place / arguments.scheme}
    _once(made[arguments.scheme], partial(quantise_checkpoint, str(folder), scheme=arguments.scheme, dtype="float32"))
    shared: dict[str, Any] = {"calibration": arguments.calibration, "dtype": "float32", "measure_cost": False}
    shared |= {"samples": 0, "report": False, "budget": arguments.budget, "method": arguments.method}
    kinds = {"": False, ", repair": True} if arguments.repair else {"": False}
    for size in (int(one) for one in arguments.remove.split(",")):
        for kind, repair in kinds.items():
            name = f"prune {size}{kind}"
            then = f"{name}, then {arguments.scheme}"
            made[name], made[then] = (place / one.replace(" ", "-") for one in (name, then))
            _once(made[name], partial(prune, str(folder), remove=size, repair=repair, **shared))
            _once(made[then], partial(quantise_checkpoint, str(made[name]), scheme=arguments.scheme, dtype="float32"))
        name = f"{arguments.scheme}, then prune {size}"
        made[name] = place / name.replace(" ", "-")
        _once(made[name], partial(prune, str(made[arguments.scheme]), remove=size, repair=False, **shared))
    return made


def _once(out: Path, make: Callable[..., Any]) -> None:
    """Make a checkpoint where it is not kept from a run before."""
    if not out.exists():
        make(out=out)


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Perplexities of a checkpoint on every text, and what was removed from it."""
    found: dict[str, Any] = {"ppl": {}}
    for text, windows in ((arguments.calibration, 10), *((text, arguments.windows) for text in arguments.eval)):
        game = ModelGame.from_pretrained(str(folder), text, windows=windows, dtype="float32", block_path="hf")
        nll = game.evaluate(np.ones((1, game.n_players), bool)).nll[0]
        found["ppl"][Path(text).name] = round(float(np.exp(nll)), 3)
    record = folder / "layercoop.json"
    found["removed"] = json.loads(record.read_text())["removed"] if record.exists() else []
    found["file_bytes"] = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    return found


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="checkpoint folder; again for more")
    parser.add_argument("--families", default=None, help="of the small trained models; gpt2 where no model is named")
    parser.add_argument("--smollm2", action="store_true", help="the small real model too")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--eval", action="append", default=None, help="texts that no search sees; again for more")
    parser.add_argument("--windows", type=int, default=40, help="windows of each of these texts")
    parser.add_argument("--remove", default="2,4")
    parser.add_argument("--scheme", default="nf4")
    parser.add_argument("--method", default="sleb")
    parser.add_argument("--budget", type=int, default=None)
    parser.add_argument(
        "--repair", action="store_true", help="rows with a repair, which can only come before quantising"
    )
    parser.add_argument("--keep", type=Path, help="folder to leave the checkpoints in, and to take them from again")
    parser.add_argument("--no-speed", action="store_true", help="leave memory and speed out")
    arguments = parser.parse_args()
    arguments.eval = arguments.eval or ["builtin-heldout"]
    families = (
        ("" if arguments.model or arguments.smollm2 else "gpt2") if arguments.families is None else arguments.families
    )
    folders = {family: folder_of(family) for family in families.split(",") if family}
    folders |= {Path(model).name: Path(model) for model in arguments.model}
    if arguments.smollm2:
        folders["SmolLM2-135M, 4-bit before (biased)"] = small_model()
    studied = {}
    for model, folder in folders.items():
        sys.stdout.write(f"{model}\n")
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) if arguments.keep is None else arguments.keep / folder.name
            made = checkpoints(folder, place, arguments)
            rows = []
            for name, path in made.items():
                row = {"name": name, **measured(path, arguments)}
                if not arguments.no_speed:
                    row["cost"] = asdict(measure_costs([path])[0])
                rows.append(row)
                cost = row.get("cost", {})
                texts = "  ".join(f"{text} {ppl:,.2f}" for text, ppl in row["ppl"].items())
                speed = f"{cost.get('prefill_tok_s', '')} {cost.get('decode_tok_s', '')}"
                sys.stdout.write(f"  {name:<32}{texts}  {row['file_bytes']:,} B  {speed}  {row['removed']}\n")
                sys.stdout.flush()
        studied[model] = rows
    result = {
        "benchmark": "export/four_bit",
        "machine": machine(),
        "calibration": Path(arguments.calibration).name,
        "method": arguments.method,
        "models": studied,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
