"""Which worth follows task scores? Rank correlations of worths with scores over many masks.

    python benchmarks/tasks/study_worths.py --text novels.txt --task-text jargon.txt --masks 200 --items 60 --sums 0

Masks are drawn in equal parts from sizes. Worths: perplexity and KL to the full model on a text, on the model's own
text, margins on items cut from the text, and sums of standardised worths. Scores: accuracy on the tasks of
local_tasks.py, made from another half of the text and from each --task-text, and their mean. Correlations (Spearman)
are over all masks, where size decides most, and the mean over sizes of those within a size, which is what a search is
after; intervals by a bootstrap of masks.
`regret`: mean over sizes of the best score less that of the mask that the worth likes best. Ends in one JSON line.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from local_tasks import write_choices, write_tasks
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.tasks.options import EngineOptions, TaskOptions
from layercoop_fast.tasks.score import score


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, the mean rank of equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    a, b = ranks(one), ranks(other)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")


def within(one: np.ndarray, other: np.ndarray, sizes: np.ndarray) -> float:
    found = np.array([spearman(one[sizes == size], other[sizes == size]) for size in np.unique(sizes)])
    known = found[~np.isnan(found)]  # scores of a few items can all be equal within a size
    return float(known.mean()) if len(known) else float("nan")


def interval(measure: Any, count: int, draws: int = 500) -> list[float]:
    generator = np.random.default_rng(0)
    found = [measure(generator.integers(0, count, count)) for _ in range(draws)]
    return [round(float(value), 3) for value in np.nanpercentile(found, [2.5, 97.5])]


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def worths_of(model: str, text: str, masks: np.ndarray, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Every worth of every mask, higher is better."""
    how = {"windows": options.windows, "tokens": options.tokens, "dtype": options.dtype}
    found = {}
    for name, spec in (("text", text), ("own text", "self")):
        game = ModelGame.from_pretrained(model, spec, utility="kl", **how)
        found[f"-KL, {name}"] = game(masks)
        found[f"-NLL, {name}"] = -game.evaluate(masks).nll
        game.close()
    game = ModelGame.from_pretrained(model, text, utility="margin", **{**how, "windows": options.margins, "tokens": 60})
    found["margin, items"] = game(masks)
    game.close()
    pairs = (("-NLL, text", "-KL, text"), ("-NLL, text", "margin, items"), ("-KL, own text", "margin, items"))
    mixtures = {" + ".join(pair): sum(standardised(found[one]) for one in pair) for pair in pairs}
    return {**found, **mixtures, "sum of all": sum(standardised(each) for each in found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--task-text", type=Path, action="append", default=[], help="a task more; repeatable")
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--removed", default="2,4,6,8,10", help="numbers of blocks that masks leave out")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--margins", type=int, default=24, help="items of the worth that is a margin")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--sums", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    model = options.model or str(small_model())
    text = options.text.read_text(encoding="utf-8")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        calibration = folder / "calibration.txt"
        calibration.write_text(text[: len(text) // 2], encoding="utf-8")
        write_tasks(text[len(text) // 2 :], folder, items=options.items, sums=max(1, options.sums))
        names = ["which_follows"] + ["sums"] * (options.sums > 0)
        for other in options.task_text:
            names.append(f"which_follows_{other.stem}")
            write_choices(other.read_text(encoding="utf-8"), folder, names[-1], options.items)
        layers = json.loads((Path(model) / "config.json").read_text())["num_hidden_layers"]
        kept = [layers - int(removed) for removed in options.removed.split(",")]
        masks = np.unique(stratified_masks(layers, options.masks, strata=kept, seed=0), axis=0)
        record = score(
            model,
            {"full": "full", **{str(number): mask for number, mask in enumerate(masks)}},
            TaskOptions(tasks=names, task_path=folder, bootstrap=0),
            EngineOptions(dtype=options.dtype),
        )
        scored = time.perf_counter() - started
        worths = worths_of(model, str(calibration), masks, options)
    rows = {task["task"]: task["metrics"][task["main"]]["masks"] for task in record["tasks"]}
    scores = {name: np.array([row[str(n)]["value"] for n in range(len(masks))]) for name, row in rows.items()}
    scores["mean"] = np.mean(list(scores.values()), axis=0)
    sizes = masks.sum(axis=1)
    found: dict[str, Any] = {}
    for task, values in scores.items():
        found[task] = {}
        full = np.mean([row["full"]["value"] for name, row in rows.items() if task in (name, "mean")])
        print(f"{task}: full {full:.3f}, {len(masks)} masks")
        for name, worth in worths.items():
            picked = [
                values[sizes == s].max() - values[sizes == s][worth[sizes == s].argmax()] for s in np.unique(sizes)
            ]
            found[task][name] = {
                "all": round(spearman(worth, values), 3),
                "within_size": round(within(worth, values, sizes), 3),
                "within_size_95": interval(lambda at, w=worth, v=values: within(w[at], v[at], sizes[at]), len(masks)),
                "regret": round(float(np.mean(picked)), 4),
            }
            print(f"  {name:32} {found[task][name]}")
    print(
        json.dumps(
            {
                "correlations": found,
                **{name: value for name, value in vars(options).items() if name not in ("text", "task_text", "model")},
                "masks": len(masks),
                "seconds_scores": round(scored, 1),
                "seconds": round(time.perf_counter() - started, 1),
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
