"""`layercoop-fast store`: inspect, join and export the files that keep measured masks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from layercoop_fast.cli.options import AsJson, Force, print_json
from layercoop_fast.errors import RequestError
from layercoop_fast.report.console import say

app = typer.Typer(help="Inspect stores of measured masks, join them, and export worths.", no_args_is_help=True)

_PARTS = ("model", "players", "utility", "dtype", "calibration", "numerics")
File = Annotated[Path, typer.Argument(metavar="FILE", help="A store, written by evaluate --store FILE.")]


@app.command()
def info(
    file: File,
    as_json: AsJson = False,
) -> None:
    """List the games of a store, with their numbers of masks and bytes."""
    from layercoop_fast.game.store import SCHEMA, Store

    with Store(file) as store:
        games = [asdict(game) for game in store.games()]
    found = {"file": str(file), "schema": SCHEMA, "bytes": _bytes_of(file), "games": games}
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Option(help="The worths.npz to write.")],
    key: Annotated[int | None, typer.Option(help="Number of the game, if there are several (store info).")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the masks and worths of one game to a worths.npz."""
    from layercoop_fast.files import check_target
    from layercoop_fast.game.store import Store

    check_target(out, force=force)
    with Store(file) as store:
        measured = store.worths(key)
    measured.save(out, force=force)
    if as_json:
        about = {"masks": len(measured.masks), "not_finite": measured.n_not_finite}
        print_json({"out": str(out), "bytes": _bytes_of(out), **about})
        return
    say(f"{len(measured.masks)} masks, {measured.n_not_finite} worths are not finite. Written to {out}")


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The stores to join, two or more.")],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Join stores into a new one; masks in several of them are kept once."""
    from layercoop_fast.game.store import merge as join

    if len(files) < 2:
        raise RequestError("name two stores or more to join")
    joined = join(files, out, force=force)
    if as_json:
        print_json({"out": str(out), "bytes": _bytes_of(out), **joined})
        return
    say(
        f"{joined['masks']} masks of {joined['games']} games; {joined['repeats']} were held more than once "
        f"(their NLLs differ by at most {joined['largest_difference']:.3g}). Written to {out}"
    )


@app.command()
def drop(
    file: File, key: Annotated[int, typer.Option(help="Number of the game (see store info).")], as_json: AsJson = False
) -> None:
    """Delete one game from a store."""
    from layercoop_fast.game.store import Store

    if not file.exists():
        raise RequestError(f"{file} does not exist")
    with Store(file, write=True) as store:
        dropped = store.drop(key)
    if as_json:
        print_json({"file": str(file), "bytes": _bytes_of(file), "key": key, "masks": dropped.masks})
        return
    say(f"game {key} with its {dropped.masks} masks is gone from {file}")


def _bytes_of(file: Path) -> int:
    """Bytes of a closed file and of its write-ahead log."""
    return sum(path.stat().st_size for path in (file, file.with_name(f"{file.name}-wal")) if path.exists())


def _show(found: dict[str, Any]) -> None:
    """Print a table of two columns for each game of a store."""
    from rich.table import Table

    from layercoop_fast.report.console import plain_console

    console = plain_console()
    console.print(f"{found['file']}: {found['bytes']:,} bytes, schema {found['schema']}", highlight=False)
    for game in found["games"]:
        # A store made by hand may lack a part.
        prints = {name: game["fingerprints"].get(name, "not said") for name in _PARTS}
        table = Table(title=f"game {game['key']}", show_header=False, title_justify="left")
        numerics = prints["numerics"] if isinstance(prints["numerics"], dict) else {}
        rows = {
            "masks": f"{game['masks']:,} held, {game['measured']:,} measured, {game['bytes']:,} bytes",
            "players": f"{game['n_players']}: {prints['players']}",
            "windows": f"{len(game['window_tokens'])} of {max(game['window_tokens'], default=0) + 1} tokens",
            "utility": prints["utility"],
            "model": f"{prints['model'][:16]}, {prints['dtype']}",
            "calibration": str(prints["calibration"])[:16],
            "numerics": ", ".join(f"{name} {value}" for name, value in numerics.items()),
        }
        if isinstance(items := prints["calibration"], dict) and "domains" in items:
            rows["calibration"] = (
                f"{str(items.get('text'))[:16]}, {len(items['weights'])} texts weighing {items['weights']}"
            )
        elif isinstance(items, dict) and "options" in items:
            rows["windows"] = (
                f"{len(items['labels'])} items, {len(items['tokens'])} options, {sum(items['tokens'])} tokens"
            )
            rows["calibration"] = str(items.get("items"))[:16]
        for name, text in rows.items():
            table.add_row(name, text)
        console.print(table, highlight=False)
