"""Pruned models as tables for people, on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from layercoop_fast.pruning.prune import Pruned
from layercoop_fast.report.console import plain_console
from layercoop_fast.report.html.record import model_name


def show_pruned(results: Sequence[Pruned], console: Console | None = None) -> None:
    """One row for the full model and one for each pruned one: blocks, perplexities, seconds, size, speed."""
    console = console or plain_console()
    heldout = all("heldout" in result.record for result in results)
    table = Table(title=model_name(results[0].record))
    table.add_column("method")
    table.add_column("removed")
    for name in ("ppl", "ppl held-out") if heldout else ("ppl",):
        table.add_column(name, justify="right")
    for name in ("search s", "MB", "decode tok/s"):
        table.add_column(name, justify="right")
    table.add_row("full", "", *_qualities(results[0].record, "full", heldout), "", *_costs(results[0].record, "full"))
    for result in results:
        record = result.record
        table.add_row(
            record["method"],
            " ".join(map(str, record["removed"])),
            *_qualities(record, "pruned", heldout),
            f"{record['seconds']['search']:.1f}",
            *_costs(record, "pruned"),
        )
    console.print(table)
    for result in results:
        if result.record["repair"] is not None:
            console.print(_repair_line(result.record), highlight=False, soft_wrap=True)
        console.print(f"written: {result.out}", highlight=False, soft_wrap=True)
        for one in result.record["hosts"]:
            if not one["inherited"]:
                console.print(f"{one['host']}: {one['problem']}", highlight=False, soft_wrap=True, markup=False)
        budget = result.record["budget"]
        if budget["kind"] != "remove":
            zeros = (
                ""
                if budget["in_checkpoint"] == budget["reached"]
                else (f", {budget['in_checkpoint']:.4g} where halves that are zeros are computed all the same")
            )
            asked, reached = (f"{budget[name]:.4g}" for name in ("asked", "reached"))
            console.print(f"{budget['kind']}: {asked} asked, {reached} reached{zeros}", highlight=False, soft_wrap=True)
        if result.record.get("nested"):
            show_family(result.record, str(result.out), console)


def show_family(record: dict[str, Any], out: str, console: Console | None = None) -> None:
    """The sizes of a nested family: what goes, what is left, and the price against the best mask of each size."""
    console = console or plain_console()
    family = record["nested"]
    unseen = any(one["heldout_ppl"] is not None for one in family["sizes"])
    table = Table(title="nested family, on the original weights")
    for name in ("removed", "goes in addition"):
        table.add_column(name)
    for name in ("ppl", *(["ppl held-out"] if unseen else []), "best of the size", "price, nats"):
        table.add_column(name, justify="right")
    before: set[str] = set()
    for one in family["sizes"]:
        own = list(map(str, one["removed"]))
        shown = [one["ppl"], *([one["heldout_ppl"]] if unseen else []), one["free_ppl"]]
        figures = ["not finite" if value is None else f"{value:.2f}" for value in shown]
        added = " ".join(label for label in own if label not in before)
        table.add_row(str(one["n_removed"]), added, *figures, f"{one['price']:.4f}")
        before = set(own)
    console.print(table)
    parts = (("size", "the largest size"), ("free", "the others by themselves"), ("family", "the family"))
    told = ", ".join(
        f"{name} {cost['masks']} masks" + (f" ({cost['passes']:.1f} passes)" if "passes" in cost else "")
        for key, name in parts
        for cost in (family["cost"][key],)
    )
    size = family["sizes"][0]["n_removed"]
    console.print(f"measured for it: {told}", highlight=False, soft_wrap=True)
    console.print(
        f"run a size of it on the original model: generate MODEL --mask {out}@{size}", highlight=False, soft_wrap=True
    )


def _repair_line(record: dict[str, Any]) -> str:
    """What the repair did, or why there is none."""
    repair = record["repair"]
    if not repair["kept"]:
        return f"not repaired: {repair['reason']}"
    gaps = [gap for gap in repair["gaps"] if gap["strength"] is not None]
    before = record["ppl"]["unrepaired"]
    return (
        f"repaired: {len(gaps)} of {len(repair['gaps'])} removed runs, by {repair['tokens']} tokens of "
        f"{', '.join(repair['texts'])} in {repair['seconds']:.1f} s; before it the perplexity was "
        f"{'not finite' if before is None else format(before, '.1f')}"
    )


def _qualities(record: dict[str, Any], which: str, heldout: bool) -> list[str]:
    sources = [record, record["heldout"]] if heldout else [record]
    return [f"{source['ppl'][which]:.2f}" if source["ppl"][which] is not None else "not finite" for source in sources]


def _costs(record: dict[str, Any], which: str) -> list[str]:
    if record["cost"] is None:
        return ["not measured", ""]
    cost = record["cost"][which]
    return [f"{cost['weight_bytes'] / 1e6:.0f}", f"{cost['decode_tok_s']:.1f}"]
