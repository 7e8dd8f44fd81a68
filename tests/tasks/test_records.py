"""What the record of `score` says of tasks that are no plain means, and of groups."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layercoop_fast.tasks.means import means
from layercoop_fast.tasks.options import TaskOptions
from layercoop_fast.tasks.score import score

MASKS = {"full": "full", "a": "1"}


@pytest.fixture(scope="module")
def scored(model: Path, task_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[int]]:
    """The record of a group of a group, a task alone and one with a perplexity; copies of documents before each mask.

    The harness makes a dictionary with documents, requests and answers; it is known by a key of its own.
    """
    import datasets
    from lm_eval import evaluator

    evaluate, copies = evaluator.evaluate, []

    def counted(*given: Any, **how: Any) -> Any:
        gc.collect()
        copies.append(sum(type(one) is dict and "target_hash" in one for one in gc.get_objects()))
        return evaluate(*given, **how)

    asked = TaskOptions(tasks=["tiny_outer", "tiny_choice", "tiny_last"], task_path=task_path, limit=4, bootstrap=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(evaluator, "evaluate", counted)
        return score(str(model), MASKS, asked), copies


def metrics_of(record: dict[str, Any], task: str) -> dict[str, Any]:
    return next(one["metrics"] for one in record["tasks"] if one["task"] == task)


def test_masks_are_compared_only_where_a_score_is_a_mean_of_documents(scored: tuple[dict[str, Any], list[int]]) -> None:
    """The harness's values by document are log-probabilities where the score is a perplexity."""
    last = metrics_of(scored[0], "tiny_last")
    assert last["perplexity,none"]["masks"]["a"].keys() == {"value", "stderr"}
    accuracy = last["acc,none"]["masks"]["a"]
    assert len(accuracy["documents"]) == 4
    assert accuracy["against"]["test"] == "mcnemar"


def test_without_a_bootstrap_no_score_has_a_standard_error(scored: tuple[dict[str, Any], list[int]]) -> None:
    found = [metric["masks"]["a"]["stderr"] for task in scored[0]["tasks"] for metric in task["metrics"].values()]
    assert set(found) == {None}


def test_a_group_counts_once(scored: tuple[dict[str, Any], list[int]]) -> None:
    record = scored[0]
    counted = [("tiny_outer", "acc,none"), ("tiny_choice", "acc_norm,none"), ("tiny_last", "acc,none")]
    for mask in MASKS:
        values = [metrics_of(record, task)[key]["masks"][mask]["value"] for task, key in counted]
        assert record["means"][mask] == {"options": pytest.approx(np.mean(values)), "generation": None}
    apart = [metrics_of(record, task)["acc,none"]["masks"]["full"]["value"] for task in ("tiny_two", "tiny_three")]
    assert apart[0] != apart[1]
    assert metrics_of(record, "tiny_outer")["acc,none"]["masks"]["full"]["value"] == pytest.approx(np.mean(apart))


def test_documents_and_answers_of_a_mask_are_not_kept(scored: tuple[dict[str, Any], list[int]]) -> None:
    before, after_one = scored[1]
    assert after_one == before


def task(name: str, kind: str | None, value: float | None) -> dict[str, Any]:
    """A task of a record with one metric, or without any."""
    metrics = {} if value is None else {"acc,none": {"higher_is_better": True, "masks": {"full": {"value": value}}}}
    return {"task": name, "kind": kind, "main": next(iter(metrics), None), "metrics": metrics}


def test_members_count_where_a_group_has_no_score_or_tasks_of_both_kinds() -> None:
    tasks = [task("a", "multiple_choice", 0.1), task("b", "multiple_choice", 0.3), task("c", "generate_until", 0.8)]
    apart = {"full": {"options": pytest.approx(0.2), "generation": 0.8}}
    for value in (None, 0.5):
        assert means([*tasks, task("all", None, value)], ["full"], {"all": ["a", "b", "c"]}) == apart
    inner = [task("all", None, None), task("two", None, 0.4)]
    groups = {"all": ["two", "c"], "two": ["a", "b"]}
    assert means([*tasks, *inner], ["full"], groups) == {"full": {"options": 0.4, "generation": 0.8}}
