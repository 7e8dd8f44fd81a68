"""Scores of masks on tasks as a table, and the means that show what breaks first."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from layercoop_fast.report.console import plain_console
from layercoop_fast.report.html.record import model_name

_SIGNIFICANT = 0.05


def show_scores(record: dict[str, Any], console: Console | None = None) -> None:
    """Print a row for each task, metric and mask, and one for each mask with its means; `record` is of `score`."""
    console = console or plain_console()
    reference = _reference(record)
    table = Table(title=model_name(record))
    for name in ("task", "metric", "mask"):
        table.add_column(name, overflow="fold")
    # The name of another model may be too long for a column: the text below the table has it.
    for name in ("score", f"less {reference}" if record["against"] is None else "difference", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in record["tasks"]:
        table.add_section()
        label = task["task"] if task["documents"] is None else f"{task['task']} ({task['documents']:,})"
        for key, metric in task["metrics"].items():
            shown = key.removesuffix(",none")
            for mask, value in metric["masks"].items():
                table.add_row(label, shown, mask, _pm(value["value"], value["stderr"]), *_against(value))
                label = shown = ""
    console.print(table)
    _show_means(record, console)
    if other := _other_requests(record):
        console.print(
            f"Not compared with {reference}, of which other documents or prompts were scored: {', '.join(other)}. "
            "Score both with the same tasks, limit, examples and chat template.",
            highlight=False,
        )
    console.print(
        "score±standard error over documents (in brackets: how many). p: paired test over the same documents, of no "
        f"difference from {reference} (McNemar's exact test of scores 0 and 1, else a sign-flip permutation test); * "
        f"below {_SIGNIFICANT}. Each p is of one comparison by itself. Scores that are no means have none.",
        highlight=False,
    )


def _show_means(record: dict[str, Any], console: Console) -> None:
    means = record["means"]
    against = record["against"]
    of_reference = means[record["reference"]] if against is None else against["means"]
    kinds = {
        name: label
        for name, label in (("options", "options (mean)"), ("generation", "generation (mean)"))
        if any(one[name] is not None for one in means.values())
    }
    if not kinds:
        return
    table = Table(title="means over tasks, a group as one: acc_norm, else acc, else exact_match")
    table.add_column("mask")
    table.add_column("removed")
    table.add_column("blocks", justify="right")
    for label in kinds.values():
        table.add_column(label, justify="right")
    for mask in record["masks"]:
        values = means[mask["name"]]
        cells = [_share(values[name], of_reference[name]) for name in kinds]
        table.add_row(mask["name"], mask["removed"], f"{mask['kept']:g}/{mask['blocks']}", *cells)
    console.print(table)
    if "generation" not in kinds:
        console.print(
            "None of these tasks generates text. Removed layers break generation before multiple choice: add a task "
            "like gsm8k.",
            highlight=False,
        )


def _reference(record: dict[str, Any]) -> str:
    """What the masks are compared with."""
    against = record["against"]
    name: str = record["reference"]
    return name if against is None else f"{name} of {model_name(against)}"


def _other_requests(record: dict[str, Any]) -> list[str]:
    """Tasks that could not be compared with those of another record, for their requests are not the same."""
    if record["against"] is None:
        return []
    return [task["task"] for task in record["tasks"] if _has(task, "documents") and not _has(task, "against")]


def _has(task: dict[str, Any], what: str) -> bool:
    return any(what in value for metric in task["metrics"].values() for value in metric["masks"].values())


def _pm(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.4g}" if stderr is None else f"{value:.4g}±{stderr:.2g}"


def _against(value: dict[str, Any]) -> tuple[str, str]:
    """What sets a mask apart from the reference, and how sure that is."""
    test = value.get("against")
    if test is None:
        return "", ""
    stderr = "" if test["stderr"] is None else f"±{test['stderr']:.2g}"
    p = test["p"]
    mark = "*" if p is not None and p < _SIGNIFICANT else " "
    return f"{test['difference']:+.3f}{stderr}", "equal" if p is None else f"{p:.2g}{mark}"


def _share(value: float | None, reference: float | None) -> str:
    """A mean, and its share of the reference's."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({value / reference:.0%})" if reference else "")
