"""Score many masks of a model on tasks in one run.

The harness builds the requests of all tasks once. Every request is answered under all masks (`tasks/harness.py`), and
the harness makes of each mask's answers what it makes of a model's: filters, metrics, standard errors, groups. Masks
are compared with the full model document by document (`tasks/paired.py`), or with one that was scored before
(`tasks/reference.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from layercoop_fast.masks.halves import PARTS, Halves
from layercoop_fast.masks.text import text_of
from layercoop_fast.masks.types import Floats, Masks, Progress
from layercoop_fast.tasks.loading import keep_requests, load_tasks, require_harness, seeded
from layercoop_fast.tasks.masks import FULL
from layercoop_fast.tasks.means import means, tasks_of
from layercoop_fast.tasks.options import EngineOptions, TaskOptions
from layercoop_fast.tasks.paired import paired
from layercoop_fast.tasks.reference import Reference, digest

# The metric of a task that stands for it in means: the first of these that it has, else its own first one.
_MAIN = ("acc_norm", "acc", "exact_match")


def score(
    model: str,
    masks: Mapping[str, str | Masks],
    tasks: TaskOptions,
    engine: EngineOptions | None = None,
    *,
    against: Reference | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score masks on tasks; the record is ready for JSON (docs/contracts.md).

    Args:
        model: checkpoint folder.
        masks: by name, as text (`masks.text.mask_of`) or bool [L] or [2L]; `full`, where it is among them, is what the
            others are compared with, and else the first one.
        tasks: which tasks, and how.
        engine: how the model runs.
        against: what all masks are compared with in place of one of them, where requests are the same.
        progress: told of requests and answers.

    Raises `RequestError` without the harness, for unknown tasks, for tasks that `against` has no scores of, and for
    masks that do not belong to the model.
    """
    require_harness()
    from lm_eval.evaluator import evaluate

    from layercoop_fast.tasks.harness import MaskedLM

    started = time.perf_counter()
    with seeded():
        loaded = load_tasks(tasks)
        if against is not None:
            against.check(loaded["tasks"])
        lm = MaskedLM(model, masks, engine or EngineOptions(), progress=progress)
        results: dict[str, dict[str, Any]] = {}
        requests: dict[str, str | None] = {}
        for turn, name in enumerate(lm.masks):
            lm.turn = turn
            result = evaluate(
                lm,
                loaded,
                limit=tasks.limit,
                bootstrap_iters=tasks.bootstrap,
                apply_chat_template=tasks.chat,
                fewshot_as_multiturn=tasks.chat,
            )
            if not requests:  # which are those of every mask
                requests = {task: digest(samples) for task, samples in result["samples"].items()}
            results[name] = _kept(result)
            del result  # before the next one is made
            for task in loaded["tasks"].values():
                keep_requests(task)
    kinds = {name: str(task.OUTPUT_TYPE) for name, task in loaded["tasks"].items()}
    members: dict[str, list[str]] = loaded["group_map"]
    reference = FULL if FULL in results else next(iter(results))
    found = [
        _task(name, kinds.get(name), requests.get(name), results, reference, members, against)
        for name in results[reference]["results"]
    ]
    return {
        "model": model,
        "reference": reference if against is None else against.mask,
        "against": None if against is None else against.told(found, members),
        "masks": [_mask(name, halves) for name, halves in lm.masks.items()],
        "tasks": found,
        "means": means(found, list(results), members),
        "work": {"tokens_alone": lm.work.alone, "tokens_computed": lm.work.computed},
        "lm_eval": version("lm_eval"),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    """What the record needs of the harness's result, without its copies of documents, requests and answers.

    `scores` has, by task and the harness's key of a metric, the scores of documents, float64 [D], for metrics that are
    means of them.
    """
    scores = {
        task: {
            key: found
            for key in _metrics(row)
            if (found := _of_documents(result["samples"].get(task, []), key, row[key])) is not None
        }
        for task, row in result["results"].items()
    }
    names = ("results", "higher_is_better", "n-shot", "n-samples", "versions")
    return {**{name: result[name] for name in names}, "scores": scores}


def _metrics(row: Mapping[str, Any]) -> list[str]:
    """The harness's keys of metrics among a task's results: METRIC,FILTER."""
    return [
        key for key, value in row.items() if "," in key and "_stderr," not in key and isinstance(value, (int, float))
    ]


def _of_documents(samples: Sequence[dict[str, Any]], key: str, score: float) -> Floats | None:
    """The values of a metric by document, float64 [D], where the score is their mean.

    None for a group, for values that are no numbers, and where the score is something else than their mean: of a
    perplexity for example the values are log-probabilities.
    """
    metric, rule = key.split(",", 1)
    values = [one[metric] for one in samples if one["filter"] == rule and metric in one]
    if not values or not all(isinstance(value, (int, float, np.number, np.bool_)) for value in values):
        return None
    found = np.array(values, np.float64)
    return found if np.isfinite(found).all() and np.isclose(found.mean(), score) else None


def _mask(name: str, halves: Halves) -> dict[str, Any]:
    kept = sum(int((halves >> bit & 1).sum()) for bit in range(len(PARTS)))
    return {"name": name, "removed": text_of(halves), "kept": kept / len(PARTS), "blocks": len(halves)}


def _task(
    name: str,
    kind: str | None,
    requests: str | None,
    results: Mapping[str, dict[str, Any]],
    reference: str,
    members: Mapping[str, Sequence[str]],
    against: Reference | None,
) -> dict[str, Any]:
    """A task, or a group of tasks (whose kind and requests are None), with every metric under every mask."""
    first = results[reference]
    keys = _metrics(first["results"][name])
    metrics = {}
    for key in keys:
        metric = key.split(",", 1)[0]
        # The harness does not say it of a group of groups.
        higher = {first["higher_is_better"].get(task, {}).get(metric) for task in tasks_of(name, members)} - {None}
        if against is None:
            others = {mask: None if mask == reference else first["scores"][name].get(key) for mask in results}
        else:
            others = dict.fromkeys(results, against.of(name, key, requests))
        metrics[key] = {
            "higher_is_better": higher.pop() if len(higher) == 1 else None,
            "masks": {mask: _value(result, name, key, others[mask]) for mask, result in results.items()},
        }
    return {
        "task": name,
        "kind": kind,
        "documents": first["n-samples"].get(name, {}).get("effective"),
        "requests": requests,
        "shots": first["n-shot"].get(name),
        "version": first["versions"].get(name),
        "main": _main(keys),
        "metrics": metrics,
    }


def _value(result: dict[str, Any], task: str, key: str, others: Floats | None) -> dict[str, Any]:
    """A metric under a mask: value, standard error, scores of documents, and what sets it apart from the reference."""
    row = result["results"][task]
    metric, rule = key.split(",", 1)
    found: dict[str, Any] = {"value": _finite(row[key]), "stderr": _finite(row.get(f"{metric}_stderr,{rule}"))}
    scores = result["scores"][task].get(key)
    if scores is not None:
        found["documents"] = scores.tolist()
        if others is not None and len(others) == len(scores):  # a file may say what it likes of its requests
            test = paired(scores, others)
            found["against"] = {
                "difference": test.difference,
                "stderr": test.stderr,
                "p": test.p,
                "test": test.test,
            }
    return found


def _finite(value: Any) -> float | None:
    """A number that JSON can write; the harness says "N/A" where it has none."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _main(metrics: Sequence[str]) -> str | None:
    """The metric that stands for a task."""
    for wanted in _MAIN:
        for key in metrics:
            if key.split(",", 1)[0] == wanted:
                return key
    return metrics[0] if metrics else None
