"""Results as tables for people, on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from layercoop_fast.report.console import plain_console
from layercoop_fast.spans import BLOCK_PRODUCTS, HEAD_PRODUCTS, NAMES

if TYPE_CHECKING:
    from layercoop_fast.game.cost_forecast import CostForecast
    from layercoop_fast.shapley.values import ShapleyValues
    from layercoop_fast.spans import Spans


def show_contributions(
    values: ShapleyValues,
    details: dict[str, Any],
    players: Sequence[str],
) -> None:
    """Print the players from least to most valuable, with standard errors and bars."""
    console = plain_console()
    table = Table(title=f"{values.method}: least valuable first")
    for name in ("player", "value", "± s.e."):
        table.add_column(name, justify="right")
    table.add_column("")
    largest = float(np.abs(values.values).max()) or 1.0
    for player in values.order():
        value, stderr = float(values.values[player]), float(values.stderr[player])
        table.add_row(players[player], f"{value:.6f}", f"{stderr:.1e}", bar(value, largest, 40))
    console.print(table)
    fit = details["fit_r2"]
    console.print(
        f"surrogate: R² {'not finite' if fit is None else f'{fit:.3f}'} on the pairs it was fitted to; "
        f"{details['n_dropped']} pairs dropped (worth not finite)",
        highlight=False,
    )


def bar(value: float, largest: float, width: int) -> str:
    """A bar of at most `width` characters, hollow for a negative value."""
    return ("█" if value >= 0 else "░") * round(width * abs(value) / largest)


def show_findings(found: dict[str, Any]) -> None:
    """Print what `doctor` found."""
    console = plain_console()
    table = Table(title=found["model"], show_header=False)
    blocks, fast = found["blocks"], found["fast"]
    rows = {
        "class": f"{found['class']} ({found['model_type']}), {found['params']:,} parameters, {found['dtype']}",
        "blocks": f"{blocks['count']} at {blocks['path']}: {', '.join(blocks['classes'])}",
        "hidden state": f"argument {blocks['hidden_at']!r}; returns a {blocks['returns']}",
        **{
            f"block {layer} is handed": "\n".join(arguments) or "the hidden state alone"
            for layer, arguments in blocks["receives"].items()
        },
        "head": f"{found['head']}{', tied to the embedding' if found['tied'] else ''}",
        "tokenizer": "found" if found["tokenizer"] else "none (only the calibration text self works)",
        "embed → blocks → head": "equals the model's own logits bit for bit"
        if found["exact"]
        else "DIFFERS from the model",
        "a checkpoint without one layer": _exports(found["exports"]),
        "sublayers as players": found["sublayers"] or "yes",
        f"on the {'CPU' if found['gpu'] is None else 'GPU'}": f"blocks: {_path(fast['blocks'])}; "
        f"head: {_path(fast['head'])}" + (f"\n{fast['why_not']}" if fast["why_not"] else ""),
        "one stored state": f"{found['state_bytes']:,} bytes ({found['windows']} windows x {found['tokens']} tokens); "
        f"{found['states_in_free_memory']:,} fit in free memory",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table, highlight=False)
    if found["gpu"] is not None:
        show_gpu(found["gpu"])


def show_gpu(found: dict[str, Any]) -> None:
    """Print what `check_gpu` found: a row for each kernel, and one for graphs."""
    console = plain_console()
    table = Table(title=found["name"])
    for name in ("kernel", "dtype", "differs by", "at most", "computed by"):
        table.add_column(name)
    for each in found["kernels"]:
        differs = "" if each["difference"] is None else f"{each['difference']:.1e}"
        by = "Triton" if each["problem"] is None else f"torch: it {'raises' if each['error'] else 'is wrong'}"
        table.add_row(each["operation"], each["dtype"], differs, f"{each['allowed']:.0e}", by)
    table.add_row("graphs", "", "", "", "the device" if found["graphs"] is None else f"none: {found['graphs']}")
    console.print(table, highlight=False)
    if not found["triton"]:
        console.print(
            "Triton is not installed, so torch computes everything: pip install 'layercoop-fast[triton]'",
            soft_wrap=True,
        )
    for each in found["kernels"]:
        if each["problem"] is not None:
            console.print(f"{each['operation']}: {each['problem']}", highlight=False, soft_wrap=True)


def _exports(found: dict[str, Any]) -> str:
    if found["refusal"] is None:
        return "can be written, whichever goes"
    return f"can be written for {found['exportable']} of {found['of']} layers; otherwise: {found['refusal']}"


def show_cost_forecast(ahead: CostForecast) -> None:
    """Print what an evaluation will cost, in a few lines, before it begins."""
    console = plain_console()
    known = f", {ahead.known:,} of them known already" if ahead.known else ""
    lines: tuple[str, ...] = (
        f"{ahead.unique + ahead.known:,} distinct masks{known}: {ahead.layer_evals:,} layer evaluations instead of "
        f"{ahead.skip:,} without sharing and {ahead.naive:,} with every layer; {ahead.gflop:,.0f} GFLOP",
        f"{ahead.state_bytes / 2**20:,.0f} MiB for stored states and {ahead.weight_bytes / 2**20:,.0f} MiB of "
        f"weights; about {ahead.seconds:,.0f} s, by a short pilot",
    )
    if ahead.read_bytes:
        lines += (
            f"{ahead.read_bytes / 2**30:,.2f} GiB of weights to be read from files, {ahead.states:,} states at a time "
            f"sharing what is read: {ahead.read_seconds:,.0f} s of reading alone",
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def show_breakdown(spans: Spans) -> None:
    """Print where the time of an evaluation went, and the share of its matrix products."""
    console = plain_console()
    table = Table(title="where the time went")
    table.add_column("work")
    for name in ("seconds", "share"):
        table.add_column(name, justify="right")
    rows = {name: spans.seconds[name] for name in NAMES if spans.seconds[name] > 0} | {"idle": spans.idle}
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.3g}", f"{seconds / spans.wall:.1%}")
    console.print(table)
    if spans.seconds[BLOCK_PRODUCTS] > 0 and spans.seconds[HEAD_PRODUCTS] > 0:
        console.print(
            f"{spans.share_of_products:.0%} of the time went into matrix products", highlight=False, soft_wrap=True
        )


def show_forecast(found: dict[str, Any]) -> None:
    """Print what `plan` predicts."""
    console = plain_console()
    title = f"{found['masks']:,} masks ({found['unique']:,} distinct) of {found['shape']['layers']} layers"
    table = Table(title=title)
    table.add_column("way")
    for name in ("layer evaluations", "share of naive", "GFLOP", f"hours at {found['tflops']:g} TFLOP/s"):
        table.add_column(name, justify="right")
    naive = found["evaluations"]["naive"]
    for way, count in found["evaluations"].items():
        table.add_row(
            way, f"{count:,}", f"{count / naive:.3f}", f"{found['gflop'][way]:,.0f}", f"{found['hours'][way]:,.2f}"
        )
    console.print(table)
    console.print(f"{found['evaluations_a_mask']:.2f} layer evaluations a distinct mask, and its head", highlight=False)
    size = found["bytes"]
    console.print(
        f"weights {size['weights'] / 2**30:,.1f} GiB, one state {size['state'] / 2**20:,.1f} MiB, "
        f"at most {found['peak_states']:,} states at once: {size['peak_states'] / 2**30:,.1f} GiB",
        highlight=False,
    )


def _path(name: str) -> str:
    return "the model's own" if name == "hf" else name
