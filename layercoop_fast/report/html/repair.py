"""What was refitted, with what ridge strength, and the gain on text that no fit saw."""

from __future__ import annotations

from layercoop_fast.report.html.markup import Html, el, join, number, table
from layercoop_fast.report.html.record import Record, of_pruned, spec_name


def repair(record: Record) -> Html | None:
    """A line for each removed run, and one for each kind of text."""
    found = record.get("repair")
    if not found:
        return None
    pieces: list[object] = []
    if found["kept"]:
        before, after = record["ppl"].get("unrepaired"), of_pruned(record["ppl"])
        pieces.append(
            el("p", f"Perplexity on the calibration text: {number(before)} unrepaired, {number(after)} repaired.")
        )
    else:
        pieces.append(el("p", f"Nothing was refitted: {found.get('reason', 'it does not help')}."))
    if found["gaps"]:
        rows = [
            [
                " ".join(map(str, gap["removed"])),
                gap["into"],
                gap.get("map", "none"),
                gap["reason"] if gap["strength"] is None else number(gap["strength"], 3),
            ]
            for gap in found["gaps"]
        ]
        head = ["removed run", "compensated by", "refitted", "ridge strength, or why not"]
        pieces.append(el("div", table(head, rows), class_="stack"))
    nll = found.get("nll") or {}
    if nll:
        rows = [[spec_name(name), number(one["before"]), number(one["after"])] for name, one in nll.items()]
        pieces.append(
            el("div", table(["text, windows of the check", "NLL unrepaired", "NLL repaired"], rows), class_="stack")
        )
    texts = ", ".join(map(spec_name, found["texts"]))
    told = f"Fitted to {found['tokens']:,} tokens of {texts} in {number(found['seconds'])} s."
    left_out = " ".join(map(str, found["left_out"]))
    pieces.append(el("p", f"{told} {left_out}".strip(), class_="soft"))
    return join(pieces)
