"""Scores of another run that masks are compared with: of a full model, where a repaired folder has other weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.text import as_saved, read_json
from layercoop_fast.masks.types import Floats
from layercoop_fast.tasks.means import means, tasks_of

_FORM = "a file of scores that `layercoop-fast score` wrote is needed"
# What the harness keeps of each document: hashes of itself, its prompt with examples and turns, and what is right.
_HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class Reference:
    """What a record says of the mask that its others are compared with.

    Attributes:
        file: that holds the record.
        model: that was scored.
        mask: its name in the record.
        requests: by task, as `digest` made it.
        values: of metrics, by task and metric.
        scores: of documents, float64 [D], by task and metric.
    """

    file: Path
    model: str
    mask: str
    requests: Mapping[str, str | None]
    values: Mapping[str, Mapping[str, float | None]]
    scores: Mapping[str, Mapping[str, Floats]]

    @classmethod
    def read(cls, file: Path) -> Reference:
        """Read a record. Raises `RequestError` in one line for anything else."""
        record = read_json(file, hint=_FORM)
        with as_saved(file, f"it holds no scores: {_FORM}"):
            mask = str(record["reference"])
            tasks = {str(task["task"]): task for task in record["tasks"]}
            return cls(
                file,
                str(record["model"]),
                mask,
                {name: None if task["requests"] is None else str(task["requests"]) for name, task in tasks.items()},
                {name: _values(task["metrics"], mask) for name, task in tasks.items()},
                {name: _scores(task["metrics"], mask) for name, task in tasks.items()},
            )

    def check(self, tasks: Iterable[str]) -> None:
        """Raise `RequestError` where a task has no scores in the record."""
        missing = [task for task in tasks if self.requests.get(task) is None]
        if missing:
            raise RequestError(
                f"{self.file} has no scores of {', '.join(missing)}: score {self.model} on the same tasks first"
            )

    def of(self, task: str, metric: str, requests: str | None) -> Floats | None:
        """The scores of documents, float64 [D]; None where there are none, or they are of other requests."""
        return self.scores[task].get(metric) if self._same(task, requests) else None

    def told(self, tasks: Sequence[dict[str, Any]], members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """What a record of `tasks` says of this one; its means are None where requests are not the same.

        `tasks` and `members` are as in `tasks.means.means`.
        """
        same = {task["task"] for task in tasks if self._same(task["task"], task["requests"])}
        own = [self._own(task, known=same.issuperset(tasks_of(task["task"], members))) for task in tasks]
        return {"file": str(self.file), "model": self.model, "means": means(own, [self.mask], members)[self.mask]}

    def _same(self, task: str, requests: str | None) -> bool:
        return requests is not None and self.requests.get(task) == requests

    def _own(self, task: dict[str, Any], *, known: bool) -> dict[str, Any]:
        """A task of another record, with the values of this one."""
        values = self.values.get(task["task"], {}) if known else {}
        metrics = {
            key: {**metric, "masks": {self.mask: {"value": values.get(key)}}} for key, metric in task["metrics"].items()
        }
        return {**task, "metrics": metrics}


def digest(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """One hash, in hexadecimal, of all documents, prompts and targets that the harness kept of a task; None without."""
    if not samples:
        return None
    lines = {f"{one['doc_id']} " + " ".join(str(one[name]) for name in _HASHES) for one in samples}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _values(metrics: Mapping[str, Any], mask: str) -> dict[str, float | None]:
    values = {key: metric["masks"][mask]["value"] for key, metric in metrics.items()}
    found = {key: None if value is None else float(value) for key, value in values.items()}
    if not all(value is None or math.isfinite(value) for value in found.values()):
        raise ValueError("no score")
    return found


def _scores(metrics: Mapping[str, Any], mask: str) -> dict[str, Floats]:
    found = {key: metric["masks"][mask].get("documents") for key, metric in metrics.items()}
    arrays = {key: np.array(values, np.float64) for key, values in found.items() if values is not None}
    if not all(array.ndim == 1 and array.size and np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("no scores")
    return arrays
