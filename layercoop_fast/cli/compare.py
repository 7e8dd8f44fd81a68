"""`layercoop-fast compare`: methods × sizes × texts, as a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.options import (
    AsJson,
    CalibrationOption,
    Chat,
    Device,
    Dtype,
    Force,
    Model,
    Objective,
    Players,
    RepairText,
    RepairTokens,
    Seed,
    TrustRemoteCode,
    check_distinct,
    stopped_with,
    with_objective,
)
from layercoop_fast.errors import RequestError


def compare(
    model: Model,
    remove: Annotated[str, typer.Option(help="Sizes: how many players to remove, 3,6,10 for example.")],
    calibration: CalibrationOption = None,
    objective: Objective = "mean",
    chat: Chat = False,
    text: Annotated[
        list[str] | None, typer.Option("--eval", help="SPEC of a text that no search sees; may be given several times.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods of `prune`, and flap: heads and channels at equal parameters.")
    ] = "coop,sleb,shortgpt,angular,ppl",
    repair: Annotated[
        bool, typer.Option("--repair", help="Measure every choice with a repair fitted to it as well, as `prune` does.")
    ] = False,
    repair_text: RepairText = None,
    repair_tokens: RepairTokens = 65_536,
    budget: Annotated[int | None, typer.Option(help="Masks that methods with a budget may measure.")] = None,
    utility: Annotated[str, typer.Option(help="Worth of a mask: ppl_ratio, nll, kl or blend:SHARE.")] = "ppl_ratio",
    players: Players = "layers",
    windows: Annotated[int, typer.Option(help="Calibration windows of each text.")] = 10,
    tokens: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    eval_windows: Annotated[int, typer.Option(min=1, help="Windows of each text of --eval.")] = 40,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    store: Annotated[
        Path | None,
        typer.Option(
            help="Keep measured masks in this file, and finished rows in FILE.rows beside it: the same command goes on "
            "from there."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the comparison to this .json as well.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the comparison to this .html as a page with charts.")] = None,
    force: Force = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare search methods: what each removes, what is left on every text, and what finding it cost.

    Rows are shown on standard error as they are found, and together at the end.
    """
    from layercoop_fast.comparing.compare import compare as run
    from layercoop_fast.comparing.rows import rows_beside
    from layercoop_fast.comparing.table import ahead_line, row_line, show_comparison
    from layercoop_fast.files import check_target, written_whole
    from layercoop_fast.progress import Bars
    from layercoop_fast.report.html.compared import comparison_page

    if repair_text and not repair:
        raise RequestError("a text to fit repairs to (--repair-text) needs --repair")
    sizes = [size.strip() for size in remove.split(",")]
    if not all(size.isdecimal() and len(size) < 10 and int(size) for size in sizes):
        raise RequestError(f"--remove takes sizes like 3,6,10, not {remove!r}")
    check_distinct(out=out, html=html, store=store)
    if store is not None and rows_beside(store).resolve() in {one.resolve() for one in (out, html) if one is not None}:
        raise RequestError(f"{rows_beside(store)} keeps the finished rows of --store {store}: write to another file")
    for target in (out, html):
        if target is not None:
            check_target(target, force=force)
    with stopped_with(store), Bars("opening the model") as bars:
        compared = run(
            model,
            calibration=calibration or "builtin",
            texts=text or [],
            remove=[int(size) for size in sizes],
            methods=[name.strip() for name in methods.split(",")],
            budget=budget,
            text_windows=eval_windows,
            repair=repair,
            repair_text=repair_text or None,
            repair_tokens=repair_tokens,
            seed=seed,
            utility=with_objective(utility, objective),
            chat=chat,
            players=players,
            windows=windows,
            tokens=tokens,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            store=store,
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
