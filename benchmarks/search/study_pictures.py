"""Search methods on a vision-language model: which blocks of its decoder can go while it still says what it sees.

    python benchmarks/train_pictures.py; python benchmarks/search/study_pictures.py [--remove 2,4]

The model is that of `benchmarks/train_pictures.py`. Every method plays on pictures with their captions; what it leaves
is exported, opened by plain transformers, and judged on pictures that no search saw: perplexity of captions, and how
many of the words for colour, shape and place it writes rightly when it goes on from a picture alone, greedily. Prints
a table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import cache_folder
from train_pictures import FOLDER, IMAGE, KINDS, PATCHES, VOCABULARY, drawn, windows

from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.search.base import get_method
from layercoop_fast.texts.calibration import image_text

_BUDGETED = ("official", "coop")
# Drawn with numbers that the training's steps, counted from (0, 0), do not use.
_SEARCH_SEED, _UNSEEN_SEED = (1, 0), (1, 1)


@torch.inference_mode()
def judged(model: Any, ids: Tensor, pixels: Tensor) -> dict[str, Any]:
    """What a model makes of pictures that no search saw, with its cache and without."""
    seen, said = ids[:, :PATCHES], ids[:, PATCHES:]
    logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[:, PATCHES - 1 : -1]
    nll = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten()))
    written = []
    for use_cache in (True, False):
        tokens = model.generate(
            input_ids=seen,
            pixel_values=pixels,
            attention_mask=torch.ones_like(seen),
            min_new_tokens=said.shape[1],
            max_new_tokens=said.shape[1],
            do_sample=False,
            suppress_tokens=[VOCABULARY.index(IMAGE)],  # a model cut too far may write what stands for a picture
            use_cache=use_cache,
        )
        written.append(tokens[:, PATCHES:])
    right = written[0] == said
    return {
        "ppl": round(float(np.exp(nll)), 3),
        "right": {kind: round(float(right[:, places].float().mean()), 3) for kind, places in KINDS.items()},
        "cache_as_without": torch.equal(*written),
    }


def show(row: dict[str, Any]) -> None:
    """Print one row as soon as it is there."""
    right = "  ".join(f"{kind} {share:.3f}" for kind, share in row["right"].items())
    sys.stdout.write(f"{row['method']:<9}{row['remove']:>3}  ppl {row['ppl']:7.3f}  {right}  {row['removed']}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remove", default="2,4")
    parser.add_argument("--methods", default="official,shortgpt,cka,zigzag,ppl,sleb,coop")
    parser.add_argument("--budget", type=int, default=300, help="masks that official and coop may measure")
    parser.add_argument("--windows", type=int, default=32, help="pictures that are searched on")
    parser.add_argument("--unseen", type=int, default=200, help="pictures that are judged on")
    arguments = parser.parse_args()
    folder = cache_folder() / FOLDER
    if not (folder / "config.json").exists():
        raise SystemExit(f"{folder} is not there: python benchmarks/train_pictures.py")

    checkpoint = open_checkpoint(str(folder), dtype="float32")
    skeleton = Skeleton(checkpoint.model)
    pixels, captions = drawn(np.random.default_rng(_SEARCH_SEED), arguments.windows)
    searched = image_text(windows(checkpoint.tokenizer, captions), {"pixel_values": pixels}, PATCHES, skeleton)
    pixels, captions = drawn(np.random.default_rng(_UNSEEN_SEED), arguments.unseen)
    ids = windows(checkpoint.tokenizer, captions)

    rows = [{"method": "full", "remove": 0, "removed": [], **judged(checkpoint.model, ids, pixels)}]
    show(rows[0])
    for size in (int(one) for one in arguments.remove.split(",")):
        for method in arguments.methods.split(","):
            game = ModelGame(checkpoint, searched, skeleton=skeleton)
            began = time.perf_counter()
            choice = get_method(method)(game, size, budget=arguments.budget if method in _BUDGETED else None)
            seconds = time.perf_counter() - began
            kept = np.flatnonzero(choice.mask).tolist()
            with tempfile.TemporaryDirectory() as place:
                export_checkpoint(
                    checkpoint.model,
                    kept,
                    Path(place) / "pruned",
                    blocks_path=skeleton.blocks_path,
                    tokenizer=checkpoint.tokenizer,
                )
                with quiet_transformers():
                    pruned = AutoModelForImageTextToText.from_pretrained(Path(place) / "pruned").eval()
            row = {
                "method": method,
                "remove": size,
                "removed": np.flatnonzero(~choice.mask).tolist(),
                "masks": choice.n_masks,
                "seconds": round(seconds, 1),
                **judged(pruned, ids, pixels),
            }
            rows.append(row)
            show(row)
    result = {
        "benchmark": "search/pictures",
        "machine": machine(),
        "budget": arguments.budget,
        "windows": arguments.windows,
        "unseen": arguments.unseen,
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
