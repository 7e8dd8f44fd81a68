"""Means of scores over tasks: over those that weigh options, and over those that generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_GENERATION = "generate_until"


def tasks_of(name: str, members: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, those of groups in it included; a task itself. `members` are as in `means`."""
    if name not in members:
        return [name]
    return [task for member in members[name] for task in tasks_of(member, members)]


def means(
    tasks: Sequence[dict[str, Any]], masks: Sequence[str], members: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float | None]]:
    """Of every mask the mean of main metrics over tasks that choose or weigh options, and over those that generate.

    A group counts once, by its own metric. Its members count in its place where it has none, and where some of its
    tasks generate and others do not. Metrics of which lower is better do not count.

    Args:
        tasks: of the record of `score`, groups among them.
        masks: by name.
        members: of each group the names of tasks and groups that are directly in it.
    """
    by_name = {task["task"]: task for task in tasks}
    inner = {member for names in members.values() for member in names}
    counted = [one for name in by_name if name not in inner for one in _counted(name, by_name, members)]
    found: dict[str, dict[str, float | None]] = {}
    for mask in masks:
        found[mask] = {}
        for label, wanted in (("options", False), ("generation", True)):
            metrics = [
                task["metrics"][task["main"]]
                for generates, task in counted
                if generates == wanted and task["main"] is not None
            ]
            values = [metric["masks"][mask]["value"] for metric in metrics if metric["higher_is_better"]]
            found[mask][label] = float(np.mean(values)) if values and None not in values else None
    return found


def _counted(
    name: str, by_name: Mapping[str, dict[str, Any]], members: Mapping[str, Sequence[str]]
) -> list[tuple[bool, dict[str, Any]]]:
    """What counts of a task or a group: records, each with whether it generates."""
    generates = {by_name[task]["kind"] == _GENERATION for task in tasks_of(name, members)}
    if name not in members or (by_name[name]["main"] is not None and len(generates) == 1):
        return [(generates.pop(), by_name[name])]
    return [one for member in members[name] for one in _counted(member, by_name, members)]
