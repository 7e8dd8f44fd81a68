"""Recurrent models end to end: `official` against `coop` on a small Mamba and RWKV, then prune, export, generate.

    python benchmarks/search/study_recurrent.py --calibration novels.txt --eval jargon.txt [--remove 2,4]

The models are those of `benchmarks/train_small.py` (train them first), so worths mean something. Each method starts
with nothing known; perplexities are a byte, on the calibration text and on texts that no search saw. Searches run on
the recurrences of `benchmarks/recurrences.py`, all else on transformers' own. What `coop` chose is then pruned and
opened by plain transformers, its logits compared with the masked model's, and it writes 48 bytes, greedily, with its
recurrent state and without. Prints a table and ends in one JSON line.

Byte-level tokenizers read a text of megabytes in minutes: give excerpts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from recurrences import trainable_recurrences
from train_small import folder_of

from layercoop_fast import prune
from layercoop_fast.comparing.compare import compare
from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.engine.skeleton import Skeleton

PROMPT = "It was a dark night, and the old man said to her"
NEW = 48


def rows_of(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both methods at every size, and the full model first."""
    with trainable_recurrences():
        compared = compare(
            str(folder),
            calibration=arguments.calibration,
            texts=arguments.eval,
            remove=[int(size) for size in arguments.remove.split(",")],
            methods=arguments.methods.split(","),
            budget=arguments.budget,
            windows=arguments.windows,
        )
    rows = []
    for row in (compared.full, *compared.rows):
        rows.append(
            {
                "method": row.method,
                "remove": row.n_remove,
                "removed": row.removed,
                "ppl": {Path(text.text).name: None if text.ppl is None else round(text.ppl, 3) for text in row.texts},
                "p_best": [None if text.p_best is None else round(text.p_best, 4) for text in row.texts],
                "masks": row.masks,
                "passes": round(row.passes, 1),
            }
        )
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row as soon as it is there."""
    texts = "  ".join(f"{name} {ppl}" for name, ppl in row["ppl"].items())
    sys.stdout.write(f"  {row['method']:<9}{row['remove']:>3}  {texts}  masks {row['masks']}  {row['removed']}\n")
    sys.stdout.flush()


def end_to_end(folder: Path, remove: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prune, open with plain transformers, compare logits with the masked model's, and generate both ways."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "pruned"
        with trainable_recurrences():
            pruned = prune(
                str(folder),
                out,
                remove=remove,
                calibration=arguments.calibration,
                budget=arguments.budget,
                windows=arguments.windows,
                repair=False,
                measure_cost=False,
                samples=0,
            )
        tokenizer = AutoTokenizer.from_pretrained(out)
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    skeleton = Skeleton(open_checkpoint(str(folder)).model)
    context = skeleton.context(ids)
    hidden = context.embedding
    for layer in pruned.record["kept"]:
        hidden = context.run(layer, hidden)
    with torch.inference_mode():
        same = torch.equal(model(ids, use_cache=False).logits, context.logits(hidden))
    written, seconds = [], []
    for use_cache in (True, False):
        began = time.perf_counter()
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, use_cache=use_cache
        )
        seconds.append(round(time.perf_counter() - began, 2))
        written.append(tokens[0, ids.shape[1] :].tolist())
    return {
        "removed": pruned.record["removed"],
        "logits_as_masked": same,
        "cache_as_without": written[0] == written[1],
        "seconds_with_and_without_state": seconds,
        "written": tokenizer.decode(written[0]),
    }


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="mamba,rwkv")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--eval", action="append", default=None, help="texts that no search sees; again for more")
    parser.add_argument("--remove", default="2,4")
    parser.add_argument("--methods", default="official,coop")
    parser.add_argument("--budget", type=int, default=300, help="masks that each method may measure")
    parser.add_argument("--windows", type=int, default=10)
    arguments = parser.parse_args()
    arguments.eval = arguments.eval or ["builtin-heldout"]
    studied = {}
    for family in arguments.families.split(","):
        folder = folder_of(family)
        if not (folder / "config.json").exists():
            raise SystemExit(f"{folder} is not there: python benchmarks/train_small.py --family {family} --text TEXT")
        sys.stdout.write(f"{family}\n")
        rows = rows_of(folder, arguments)
        studied[family] = {
            "rows": rows,
            "end_to_end": end_to_end(folder, int(arguments.remove.split(",")[0]), arguments),
        }
        sys.stdout.write(f"  {studied[family]['end_to_end']}\n")
    result = {
        "benchmark": "search/recurrent",
        "machine": machine(),
        "calibration": Path(arguments.calibration).name,
        "budget": arguments.budget,
        "windows": arguments.windows,
        "families": studied,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
