"""`layercoop-fast compare`: methods × sizes × texts, as a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, Force, Model, Objective, check_distinct, stopped_with, with_objective
from layercoop_fast.comparing.request import CompareRequest
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import OUTPUT

_OPTIONS = (
    *("calibration", "texts", "text_windows", "windows", "tokens", "chat", "remove", "players", "methods", "budget"),
    *("items", "continuations", "utility", "seed", "store"),
    *("repair", "compensations", "repair_text", "repair_tokens", "repair_compute"),
    *("dtype", "device", "trust_remote_code"),
)


@expanded(only=_OPTIONS)
def compare(
    model: Model,
    request: CompareRequest,
    objective: Objective = "mean",
    out: Annotated[
        Path | None, typer.Option(help="Write the comparison to this .json as well.", rich_help_panel=OUTPUT)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write the comparison to this .html as a page with charts.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compare search methods: what each removes, what is left on every text, and what finding it cost.

    Rows are shown on standard error as they are found, and together at the end.
    """
    from layercoop_fast.comparing.compare import compare as run
    from layercoop_fast.comparing.rows import rows_file
    from layercoop_fast.comparing.table import ahead_line, row_line, show_comparison
    from layercoop_fast.files import check_target, written_whole
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.html.compared import comparison_page

    if request.repair_text and not request.fits:
        raise RequestError("a text to fit repairs to (--repair-text) needs --repair or --compensate")
    request = with_objective(request, objective)
    store = None if request.store is None else Path(request.store)
    check_distinct(out=out, html=html, store=store)
    if store is not None and rows_file(store).resolve() in {one.resolve() for one in (out, html) if one is not None}:
        raise RequestError(f"{rows_file(store)} keeps the finished rows of --store {store}: write to another file")
    for target in (out, html):
        if target is not None:
            check_target(target, force=force)
    with stopped_with(store), Bars("opening the model") as bars:
        compared = run(
            model,
            **vars(request),
            on_progress=bars.update,
            on_ahead=lambda ahead: bars.say(ahead_line(ahead)),
            on_row=lambda row: bars.say(row_line(row)),
        )
    written = json.dumps(compared.record, indent=1, allow_nan=False)
    if out is not None:
        with written_whole(out, force=force) as made:
            made.write_text(written + "\n", encoding="utf-8")
    if html is not None:
        with written_whole(html, force=force) as made:
            made.write_text(comparison_page(compared.record), encoding="utf-8")
    if as_json:
        typer.echo(written)
    else:
        show_comparison(compared)
