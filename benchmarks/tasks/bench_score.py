"""Many masks scored in one run against runs of the harness's own `hf` model on the exported checkpoints.

    python benchmarks/tasks/bench_score.py --text novels.txt --masks 'a=13-18,b=20-23,c=24' --items 200 --sums 40

Both score the same documents, in this process, with the same dtype and threads; times include opening the model.
Exporting the checkpoints is not counted. Ends in one JSON line.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from local_tasks import write_tasks
from machine import machine
from small_model import small_model

from layercoop_fast import export_checkpoint
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.masks.text import mask_of
from layercoop_fast.tasks.masks import named_masks
from layercoop_fast.tasks.options import EngineOptions, TaskOptions
from layercoop_fast.tasks.score import score


def exported(model: str, masks: dict[str, Any], folder: Path) -> dict[str, Path]:
    """A checkpoint for each mask, as plain transformers opens it."""
    found = {}
    for name, mask in masks.items():
        opened = open_checkpoint(model)
        skeleton = Skeleton(opened.model)
        kept = np.flatnonzero(mask_of(mask, skeleton.n_layers)).tolist()
        found[name] = folder / name
        export_checkpoint(
            opened.model,
            kept,
            found[name],
            blocks_path=skeleton.blocks_path,
            tokenizer=opened.tokenizer,
            verify=False,
        )
    return found


def by_hf(folder: Path, tasks: Path, names: list[str], dtype: str, batch: int) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    lm = HFLM(pretrained=str(folder), device="cpu", dtype=dtype, batch_size=batch, softmax_dtype="float32")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0)
    return found, time.perf_counter() - started


def differences(record: dict[str, Any], theirs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Documents whose score differs, and the largest difference of a metric."""
    documents, unlike, largest = 0, 0, 0.0
    for task in record["tasks"]:
        for key, metric in task["metrics"].items():
            for mask, value in metric["masks"].items():
                result = theirs[mask]
                largest = max(largest, abs(value["value"] - result["results"][task["task"]][key]))
                name, rule = key.split(",")
                rows = [one for one in result["samples"][task["task"]] if one["filter"] == rule]
                documents += len(rows)
                unlike += sum(own != row[name] for own, row in zip(value["documents"], rows, strict=True))
    return {"documents": documents, "documents_that_differ": unlike, "largest_difference": largest}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default=None)
    options.add_argument("--text", type=Path, required=True)
    options.add_argument("--masks", default="a=13-18,b=13-15,c=20-25")
    options.add_argument("--items", type=int, default=200)
    options.add_argument("--sums", type=int, default=0)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--batch", type=int, default=8, help="of the harness's own model")
    given = options.parse_args()
    model = given.model or str(small_model())
    masks = named_masks(given.masks)
    names = ["which_follows"] + ["sums"] * (given.sums > 0)
    with tempfile.TemporaryDirectory() as place:
        tasks = Path(place) / "tasks"
        write_tasks(given.text.read_text(encoding="utf-8"), tasks, items=given.items, sums=max(1, given.sums))
        folders = exported(model, masks, Path(place))
        asked = TaskOptions(tasks=names, task_path=tasks, bootstrap=0)
        started = time.perf_counter()
        record = score(model, masks, asked, EngineOptions(dtype=given.dtype))
        ours = time.perf_counter() - started
        print(f"one run, {len(masks)} masks: {ours:.1f} s")
        theirs, seconds = {}, {}
        for name, folder in folders.items():
            theirs[name], seconds[name] = by_hf(folder, tasks, names, given.dtype, given.batch)
            print(f"hf, {name}: {seconds[name]:.1f} s")
    found = {
        "masks": {one["name"]: one["removed"] for one in record["masks"]},
        "items": given.items,
        "sums": given.sums,
        "dtype": given.dtype,
        "hf_batch": given.batch,
        "seconds": round(ours, 2),
        "hf_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ratio": round(ours / sum(seconds.values()), 3),
        **differences(record, theirs),
        "means": record["means"],
        "work": record["work"],
        "threads": torch.get_num_threads(),
        **machine(),
    }
    for task in record["tasks"]:
        for key, metric in task["metrics"].items():
            print(task["task"], key, {name: round(value["value"], 4) for name, value in metric["masks"].items()})
    print(f"ratio {found['ratio']}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
