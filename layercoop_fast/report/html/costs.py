"""What the result costs to run, what the search cost, and how to repeat it."""

from __future__ import annotations

import json

from layercoop_fast.report.html.charts import Bar, bars
from layercoop_fast.report.html.markup import Html, el, folded, join, number, table
from layercoop_fast.report.html.record import Record

_COSTS = {
    "params": ("parameters", 1),
    "weight_bytes": ("weights, MB", 1e6),
    "kv_bytes_per_token": ("cache, bytes a token", 1),
    "peak_memory_bytes": ("peak memory, MB", 1e6),
    "prefill_tok_s": ("prefill, tokens a second", 1),
    "decode_tok_s": ("decode, tokens a second", 1),
}
_RACING = ("coop", "evopress")


def running(record: Record) -> Html | None:
    """Memory and speed of the full and the pruned model."""
    cost = record.get("cost")
    if not cost:
        return None
    rows = []
    for name, (label, unit) in _COSTS.items():
        full, pruned = (cost[which][name] if unit == 1 else cost[which][name] / unit for which in ("full", "pruned"))
        change = f"{pruned / full - 1:+.1%}".replace("-", "−") if full else ""
        rows.append([label, number(full), number(pruned), change])
    return table(["", "full", "pruned", "change"], rows)


def searching(record: Record) -> Html | None:
    """Evaluations and seconds."""
    counts, seconds = record.get("evaluations"), record.get("seconds")
    if not counts or not seconds:
        return None
    naive = counts["layer_evals_naive"]
    share = f" ({counts['layer_evals'] / naive:.0%})" if naive else ""
    how = f"by {counts['layer_evals']:,} layer evaluations instead of {naive:,}{share}"
    if record["method"] in _RACING:  # these measure windows part by part, which counts elsewhere
        how = f"{counts['layer_evals']:,} layer evaluations of them on all windows at once, the others part by part"
    spent, passes = counts.get("token_evals", 0), _passes(record)
    told = "" if passes is None else f"{number(passes, 3)} passes of the full model over the calibration text, "
    said = (
        f"{counts['masks']:,} masks asked, {counts['unique']:,} distinct ones measured in full, {how}. All "
        f"work together: {told}{spent:,} layers × tokens."
    )
    drawn = [Bar(stage, taken, f"{stage}: {number(taken)} s") for stage, taken in seconds.items()]
    rows = [[stage, number(taken)] for stage, taken in seconds.items()]
    chart = bars(drawn, f"Seconds by stage, {number(float(sum(seconds.values())))} in all", "seconds")
    return join([el("p", said), chart, folded("As a table", table(["stage", "seconds"], rows))])


def _passes(record: Record) -> float | None:
    """What was spent, in passes of the full model over the calibration text; None where windows were added."""
    text = record.get("calibration") or {}
    if not text.get("windows") or not text.get("tokens") or (record.get("details") or {}).get("settled"):
        return None
    layers = {str(label).partition(".")[0] for label in (*record["removed"], *record["kept"])}
    one = float(len(layers) * text["windows"] * text["tokens"])
    return float(record["evaluations"].get("token_evals", 0)) / one


def origin(record: Record) -> Html | None:
    """Seeds, versions, fingerprints and the command."""
    facts: dict[str, object] = {"seed": record.get("seed")}
    facts |= {name: value for name, value in (record.get("calibration") or {}).items() if not isinstance(value, dict)}
    facts |= record.get("versions") or {}
    prints = record.get("fingerprints") or {}
    rows = [[name, _told(value)] for name, value in facts.items() if value is not None]
    deeper = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in prints.items()]
    command = record.get("command")
    again: list[object] = [el("p", "To do it again:"), el("pre", el("code", _unbroken(command)))] if command else []
    if not command:
        again = [el("p", "This record holds no command to do it again.", class_="soft")]
    return join(
        [
            *again,
            el("div", table(["", ""], rows), class_="facts"),
            folded("Fingerprints: what the numbers belong to", el("div", table(["", ""], deeper), class_="facts")),
        ]
    )


def _unbroken(command: str) -> Html:
    """A command whose lines break only between words, where possible."""
    pieces: list[object] = []
    for word in command.split(" "):
        pieces += [el("span", word, class_="word"), " "]
    return join(pieces[:-1])


def _told(value: object) -> str:
    """A fact of the calibration, or of several texts, as it is read."""
    if not isinstance(value, list):
        return str(value)
    texts = (f"{one['spec']} (weight {number(one['weight'])}, {one['windows']} windows)" for one in value)
    return "; ".join(texts)
